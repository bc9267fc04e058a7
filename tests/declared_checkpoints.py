"""Checkpoints that declare their vectors, in every shape, saved by sentence-transformers itself; and its own vectors.

Bodies are tiny and random, with the tokenizer of MiniLM. PyLate's and Stanford's files are written by hand.
"""

import json
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from torch.nn import GELU, Identity
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from tests.models import ARCHITECTURES
from tests.splade_checkpoint import splade_folder

WIDTH, MAX_TOKENS = 32, 64
TEXTS = (
    "A short text.",
    "Hello, world! It's (nearly) fine; isn't it?",
    "x",
    "The quick brown fox jumps over the lazy dog. " * 12,  # longer than MAX_TOKENS
    "[unused0] already here",
    " leading  and trailing  ",
)
PUNCTUATION = "!?... (,) --- ;:"  # a text without any other token
ALL_ROLES = ("none", "query", "document")


@dataclass
class Bodies:
    """Tiny random encoders of one architecture, each saved once."""

    root: Path
    minilm: str
    architecture: str = "bert"
    saved: dict[Any, str] = field(default_factory=dict)

    def __call__(self, auto: Any = AutoModel, seed: int = 0) -> str:
        if (auto, seed) not in self.saved:
            torch.manual_seed(seed)
            sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
            config = AutoConfig.for_model(self.architecture, **ARCHITECTURES[self.architecture] | sizes)
            folder = self.new_folder()
            shake(auto.from_config(config)).save_pretrained(folder)
            AutoTokenizer.from_pretrained(self.minilm, model_max_length=128).save_pretrained(folder)
            self.saved[auto, seed] = str(folder)
        return self.saved[auto, seed]

    def new_folder(self) -> Path:
        """An empty folder."""
        return Path(mkdtemp(dir=self.root))


@dataclass(frozen=True)
class Shape:
    """A kind of checkpoint."""

    family: str  # dense | sparse | late
    build: Callable[[Bodies], Path]
    roles: tuple[str, ...] = ("none",)  # that it defines


def shake(module: Any) -> Any:
    """Change all parameters a little, so that biases are not 0 and the weights of norms not 1."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return module


def save(modules: list[Any], bodies: Bodies, library: Any = SentenceTransformer, **options) -> Path:
    folder = bodies.new_folder()
    library(modules=modules, device="cpu", **options).save_pretrained(str(folder), create_model_card=False)
    return folder


def _dense(*modules: Callable[[], Any], **options) -> Callable[[Bodies], Path]:
    """Builds a checkpoint whose Transformer these modules follow."""

    def build(bodies: Bodies) -> Path:
        transformer = Transformer(bodies(), max_seq_length=MAX_TOKENS)
        torch.manual_seed(1)
        return save([transformer, *(make() for make in modules)], bodies, **options)

    return build


def _pool(modes: Any = "mean", **options) -> Callable[[], Pooling]:
    return lambda: Pooling(WIDTH, modes, **options)


def _legacy(bodies: Bodies) -> Path:
    folder = _dense(_pool(("cls", "mean")))(bodies)
    old = {f"pooling_mode_{mode}": mode != "max_tokens" for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **old}))
    return folder


def _lower_case(bodies: Bodies) -> Path:
    """As older versions save it; the tokenizer itself distinguishes upper and lower case."""
    folder = _dense(_pool())(bodies)
    for name, key, changes in (
        ("tokenizer.json", "normalizer", {"lowercase": False}),
        ("sentence_bert_config.json", None, {"do_lower_case": True}),
    ):
        content = json.loads((folder / name).read_text())
        (content[key] if key else content).update(changes)
        (folder / name).write_text(json.dumps(content))
    return folder


def _router(bodies: Bodies) -> Path:
    router = Router.for_query_document(
        query_modules=[Transformer(bodies(), max_seq_length=MAX_TOKENS), Pooling(WIDTH, "cls")],
        document_modules=[Transformer(bodies(seed=1)), Pooling(WIDTH, "mean")],
    )
    return save([router, Normalize()], bodies)


def _masked_lm(bodies: Bodies) -> Transformer:
    return Transformer(bodies(AutoModelForMaskedLM), transformer_task="fill-mask", max_seq_length=MAX_TOKENS)


def _splade(strategy: Any, activation: Any = "relu", **options) -> Callable[[Bodies], Path]:
    return lambda bodies: save(
        [_masked_lm(bodies), SpladePooling(strategy, activation)], bodies, SparseEncoder, **options
    )


def _inference_free(bodies: Bodies) -> Path:
    document = _masked_lm(bodies)
    torch.manual_seed(1)
    tokenizer: Any = document.tokenizer
    query = SparseStaticEmbedding(tokenizer=tokenizer, weight=torch.rand(len(tokenizer)))
    return save(
        [Router.for_query_document([query], [document, SpladePooling("max", "log1p_relu")])], bodies, SparseEncoder
    )


def _late(
    bodies: Bodies, *more: Any, expansion: Any = None, words: Iterable[str] = string.punctuation, **options
) -> Path:
    expansion = expansion or {"strategy": "fixed", "length": 16, "attend": False}
    lengths = {"document_length": 48, "query_expansion": expansion, "max_seq_length": MAX_TOKENS}
    torch.manual_seed(1)
    at_tokens: Any = {"module_input_name": "token_embeddings"}
    dense = Dense(WIDTH, 8, bias=False, activation_function=Identity(), **at_tokens)
    modules = [Transformer(bodies(), **lengths), dense, MultiVectorMask(list(words)), Normalize(**at_tokens), *more]
    return save(modules, bodies, MultiVectorEncoder, **options)


def _pylate(bodies: Bodies, *, expansion: bool = True, markers: tuple[str, str] = ("[unused0] ", "[unused1] ")) -> Path:
    """PyLate saves a Transformer and a Dense only; its settings imply the mask and the normalization."""
    folder = _late(bodies)
    modules = json.loads((folder / "modules.json").read_text())[:2]
    modules[1]["type"] = "pylate.models.Dense.Dense"
    dense = json.loads((folder / "1_Dense/config.json").read_text())
    settings = {
        "model_type": "ColBERT",
        "__version__": {"sentence_transformers": "5.1.1"},
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": markers[0],
        "document_prefix": markers[1],
        "query_length": 24,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        "do_query_expansion": expansion,
    }
    contents = {
        "modules.json": modules,
        "1_Dense/config.json": {key: value for key, value in dense.items() if not key.startswith("module_")},
        "sentence_bert_config.json": {"max_seq_length": 63, "do_lower_case": False},
        "config_sentence_transformers.json": settings,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _stanford(bodies: Bodies) -> Path:
    """Stanford's ColBERT: one file of weights with the projection in it, and its own settings."""
    folder = bodies.new_folder() / "colbert"
    shutil.copytree(bodies(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    weights = load_file(folder / "model.safetensors")
    weights = {f"{bodies.architecture}.{name}": weight for name, weight in weights.items()}
    torch.manual_seed(1)
    weights["linear.weight"] = torch.randn(8, WIDTH) * 0.2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_maxlen": 24,
        "doc_maxlen": 40,
        "attend_to_mask_tokens": False,
        "mask_punctuation": True,
        "dim": 8,
    }
    (folder / "artifact.metadata").write_text(json.dumps(settings))
    return folder


def _dense_steps(bodies: Bodies) -> Path:
    modules = [_pool(), partial(Dense, WIDTH, 48), partial(Dense, 48, 16, bias=False, activation_function=Identity())]
    return _dense(*modules, lambda: shake(LayerNorm(16)), Normalize)(bodies)


_E5 = {"query": "query: ", "passage": "passage: "}
_INSTRUCTIONS = {"query": "Represent the question: ", "document": "Represent: "}
_RESIDUAL = partial(Dense, WIDTH, 16, use_residual=True, activation_function=GELU())

CLUSTERED = "MultiVectorEncoder with token pooling"
SHAPES = {
    "the real MiniLM": Shape("dense", lambda bodies: Path(bodies.minilm)),
    **{f"pooling {mode}": Shape("dense", _dense(_pool(mode))) for mode in Pooling.POOLING_MODES},
    "pooling mean, cls and max concatenated": Shape("dense", _dense(_pool(("mean", "cls", "max")))),
    "prompts without a default": Shape("dense", _dense(_pool(), Normalize, prompts=_E5), ALL_ROLES),
    "prompts with a default": Shape(
        "dense", _dense(_pool(), Normalize, prompts=_E5, default_prompt_name="passage"), ALL_ROLES
    ),
    **{
        f"pooling {mode} without the prompt": Shape(
            "dense", _dense(_pool(mode, include_prompt=False), prompts=_INSTRUCTIONS), ALL_ROLES
        )
        for mode in ("mean", "weightedmean", "cls", "max")
    },
    "two Dense, LayerNorm and Normalize": Shape("dense", _dense_steps),
    "residual Dense": Shape("dense", _dense(_pool(), _RESIDUAL)),
    "lower case": Shape("dense", _lower_case),
    "older keys of a Pooling": Shape("dense", _legacy),
    "Router with two bodies": Shape("dense", _router, ALL_ROLES),
    "SPLADE max": Shape("sparse", _splade("max")),
    "SPLADE sum": Shape("sparse", _splade("sum")),
    "SPLADE max of log1p twice": Shape("sparse", _splade("max", "log1p_relu")),
    "SPLADE with max_active_dims": Shape("sparse", _splade("max", max_active_dims=20)),
    "the real SPLADE": Shape("sparse", lambda bodies: Path(splade_folder(bodies.new_folder() / "splade"))),
    "SPLADE without inference for queries": Shape("sparse", _inference_free, ALL_ROLES),
    "MultiVectorEncoder": Shape("late", partial(_late, prompts={"query": "[Q] ", "document": "[D] "}), ALL_ROLES),
    "MultiVectorEncoder with attended expansion": Shape(
        "late", partial(_late, expansion={"strategy": "min", "length": 16, "attend": True}, words=()), ALL_ROLES
    ),
    "PyLate with expansion": Shape("late", _pylate, ALL_ROLES),
    "PyLate without expansion": Shape("late", partial(_pylate, expansion=False), ALL_ROLES),
    "PyLate with markers outside of the vocabulary": Shape(
        "late", partial(_pylate, markers=("[Q] ", "[D] ")), ALL_ROLES
    ),
    "Stanford's ColBERT": Shape("late", _stanford, ALL_ROLES),
    CLUSTERED: Shape("late", lambda bodies: _late(bodies, HierarchicalTokenPooling(pool_factor=2)), ALL_ROLES),
}
_LIBRARY = {"dense": SentenceTransformer, "sparse": SparseEncoder, "late": MultiVectorEncoder}


@cache
def _load(folder: str, family: str) -> Any:
    return _LIBRARY[family](folder, device="cpu").eval()


def expected_vectors(folder: str, family: str, role: str, texts: Iterable[str]) -> list[np.ndarray]:
    """The vectors of sentence-transformers, one text at a time: (dims,), (vocabulary,), or (tokens, dims) if late."""
    model = _load(folder, family)
    encode = {"none": model.encode, "query": model.encode_query, "document": model.encode_document}[role]
    options = {"convert_to_sparse_tensor": False} if family == "sparse" else {}
    vectors = (encode([text], show_progress_bar=False, **options)[0] for text in texts)
    return [torch.as_tensor(vector).float().numpy() for vector in vectors]


def run_conversion(message: str) -> None:
    """Run the command at the end of a message about pickled weights, in a shell whose `python` is this one."""
    command = message.partition("Convert them once: ")[2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": path}, capture_output=True)
