"""Checkpoints that declare their vectors, in every shape, saved by sentence-transformers; and the vectors it gives."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling
from torch.nn import GELU, Identity
from transformers import AutoModelForMaskedLM

from tests.late_checkpoints import late_checkpoint, pylate_checkpoint, stanford_checkpoint
from tests.splade_checkpoint import splade_folder
from tests.tiny_bodies import MAX_TOKENS, WIDTH, Bodies, save, shake

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


@dataclass(frozen=True)
class Shape:
    """A kind of checkpoint."""

    family: str  # dense | sparse | late
    build: Callable[[Bodies], Path]
    roles: tuple[str, ...] = ("none",)  # that it defines


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
        ("tokenizer_config.json", None, {"do_lower_case": False}),
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
    "MultiVectorEncoder": Shape(
        "late", partial(late_checkpoint, prompts={"query": "[Q] ", "document": "[D] "}), ALL_ROLES
    ),
    "MultiVectorEncoder with attended expansion": Shape(
        "late",
        partial(late_checkpoint, expansion={"strategy": "min", "length": 16, "attend": True}, words=()),
        ALL_ROLES,
    ),
    "PyLate with expansion": Shape("late", pylate_checkpoint, ALL_ROLES),
    "PyLate without expansion": Shape("late", partial(pylate_checkpoint, expansion=False), ALL_ROLES),
    "PyLate with markers outside of the vocabulary": Shape(
        "late", partial(pylate_checkpoint, markers=("[Q] ", "[D] ")), ALL_ROLES
    ),
    "Stanford's ColBERT": Shape("late", stanford_checkpoint, ALL_ROLES),
    CLUSTERED: Shape(
        "late", lambda bodies: late_checkpoint(bodies, HierarchicalTokenPooling(pool_factor=2)), ALL_ROLES
    ),
}
_LIBRARY = {"dense": SentenceTransformer, "sparse": SparseEncoder, "late": MultiVectorEncoder}


@cache
def load_model(folder: str, family: str) -> Any:
    """The model of sentence-transformers."""
    return _LIBRARY[family](folder, device="cpu").eval()


def expected_vectors(folder: str, family: str, role: str, texts: Iterable[str]) -> list[np.ndarray]:
    """The vectors of sentence-transformers, one text at a time: (dims,), (vocabulary,), or (tokens, dims) if late."""
    model = load_model(folder, family)
    encode = {"none": model.encode, "query": model.encode_query, "document": model.encode_document}[role]
    options = {"convert_to_sparse_tensor": False} if family == "sparse" else {}
    vectors = (encode([text], show_progress_bar=False, **options)[0] for text in texts)
    return [torch.as_tensor(vector).float().numpy() for vector in vectors]


def run_conversion(message: str) -> None:
    """Run the command at the end of a message about pickled weights, in a shell whose `python` is this one."""
    command = message.partition("Convert them once: ")[2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PATH": path}, capture_output=True)
