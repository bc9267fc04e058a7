"""Targets: the files of a checkpoint: configuration, weights, tokenizer, what it declares."""

import json
import shutil
from pathlib import Path
from tempfile import mkdtemp

import torch
from transformers import AutoConfig, AutoModel

from tests.declarations import read as read_declaration
from tests.declared_checkpoints import CLUSTERED, SHAPES
from tests.fuzz.target import Target
from tests.models import ARCHITECTURES
from tests.tiny_bodies import Bodies
from varve.cli.corpus import model_folder
from varve.config.model import Model
from varve.encoder.checkpoint.inspection import inspect_checkpoint
from varve.encoder.checkpoint.local_folder import check_local_folder
from varve.encoder.checkpoint.pretrained_tokenizer import load_tokenizer
from varve.errors import JobError, RunError
from varve.preprocessing.tokenizer import Tokenizer

_WORDS = 200  # of the vocabulary
_TEXTS = ("A text, with words. ", "", "a" * 300)
_DECLARED = {
    "dense": ("two Dense, LayerNorm and Normalize", "none"),
    "router": ("Router with two bodies", "query"),
    "sparse": ("SPLADE without inference for queries", "query"),
    "clustered": (CLUSTERED, "query"),
    "pylate": ("PyLate with expansion", "query"),
    "stanford": ("Stanford's ColBERT", "document"),
}


def _make(folder: Path) -> None:
    for name in ("bert", "modernbert", "distilbert"):
        torch.manual_seed(0)
        values = ARCHITECTURES[name] | {"vocab_size": _WORDS}
        values = {key: 0 if key.endswith("token_id") else value for key, value in values.items()}
        AutoModel.from_config(AutoConfig.for_model(name, **values)).save_pretrained(folder / name)
        save_tokenizer(folder / name)


def save_tokenizer(folder: Path) -> None:
    """Save MiniLM's tokenizer with a vocabulary that holds its special tokens and the first words."""
    for file in Path(model_folder()).glob("*token*.json"):
        shutil.copy(file, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word for word in content["model"]["vocab"] if word not in special and not word.startswith("[unused")]
    kept = {word: place for place, word in enumerate([*special, *words][:_WORDS])}
    content["model"]["vocab"] = kept
    for token in content["added_tokens"]:
        token["id"] = kept[token["content"]]
    for token in content["post_processor"].get("special_tokens", {}).values():
        token["ids"] = [kept[each] for each in token["tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in kept))


def _inspect(folder: Path, name: str) -> None:
    checkpoint = folder / Path(name).parts[0]
    check_local_folder(Model(name=str(checkpoint)))
    inspect_checkpoint(str(checkpoint))


def _tokenize(folder: Path, name: str) -> None:
    checkpoint = inspect_checkpoint(str(folder / Path(name).parts[0]))
    tokenizer = Tokenizer(load_tokenizer(checkpoint), 16, vocab_size=checkpoint.vocab_size)
    try:
        tokens = tokenizer(_TEXTS)
    except Exception as e:
        if type(e) is not Exception:  # tokenizers raises it for a missing unknown token; a run reports it in one line
            raise
        raise RunError(str(e)) from e
    tokenizer.find_unencodable(tokens)


def _make_declared(folder: Path) -> None:
    bodies = Bodies(Path(mkdtemp()), str(model_folder()))
    for name, (shape, _) in _DECLARED.items():
        built = SHAPES[shape].build(bodies)
        shutil.copytree(built, folder / name, ignore=shutil.ignore_patterns("model.safetensors.index*", "*.md"))


def _read_declared(folder: Path, name: str) -> None:
    family = Path(name).parts[0]
    found = read_declaration(folder / family, _DECLARED[family][1])
    if found.declaration:
        found.declaration.describe(64, found.declaration.text.prompt)
        hash(found.declaration)
    if found.problem:
        raise JobError(found.problem)


_CONFIGURATION = ("*/config.json", "*/*.safetensors")
_TOKENIZER = ("bert/tokenizer.json", "bert/tokenizer_config.json", "bert/special_tokens_map.json", "bert/vocab.txt")
_DECLARATIONS = tuple(
    f"*/{name}"
    for name in (
        "modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "router_config.json",
        "*_*/config.json", "*/*_*/config.json", "*_*/model.safetensors", "artifact.metadata", "tokenizer_config.json",
    )
)  # fmt: skip
TARGETS = (
    Target("checkpoint", _make, _CONFIGURATION, _inspect, confined=True),
    Target("tokenizer", _make, _TOKENIZER, _tokenize, confined=True),
    Target("declaration", _make_declared, _DECLARATIONS, _read_declared, confined=True),
)
