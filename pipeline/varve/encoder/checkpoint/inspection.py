"""A checkpoint, looked at: what is in it, what its model can do. No weight is read into memory.

Safetensors only, no remote code unless the job says so. Knows nothing of texts, batches or outputs.
Invariant: a checkpoint of a known architecture is looked at without importing the code of models, which takes seconds.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from varve.encoder.checkpoint.hub import fetch
from varve.encoder.feature_plan import ModelShape
from varve.errors import JobError, first_line

# What the code of the most used models says of them (a test compares), so that planning a job need not import it:
# model type → (prefix of the encoder's weights, whether positions begin behind padding's, whether it has a pooler).
_KNOWN = {
    "albert": ("albert", False, True),
    "bert": ("bert", False, True),
    "camembert": ("roberta", True, True),
    "distilbert": ("distilbert", False, False),
    "electra": ("electra", False, False),
    "modernbert": ("model", False, False),
    "roberta": ("roberta", True, True),
    "xlm-roberta": ("roberta", True, True),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder with a checkpoint in it, looked at but not loaded."""

    folder: str
    commit: str | None  # of a hub id; None for a folder of the user's
    shape: ModelShape
    max_positions: int | None  # tokens that the model can take; None: no bound
    vocab_size: int | None  # tokens that have an embedding; None: not told
    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str
    trust_remote_code: bool


def inspect_checkpoint(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Checkpoint:
    """Read all of a checkpoint that needs no weights in memory.

    Raises:
        JobError: the checkpoint is missing, is no encoder, or has no safetensors weights that are whole.
    """
    folder, commit = fetch(name, revision)
    config = _config(folder, name, trust_remote_code=trust_remote_code)
    files = _weight_files(folder, name)
    names = _weight_names(files)
    code = _known_code(config) or _imported_code(config, trust_remote_code=trust_remote_code)
    return Checkpoint(
        folder=folder,
        commit=commit,
        shape=_shape(config, code, names),
        max_positions=_max_positions(config, code),
        vocab_size=getattr(config, "vocab_size", None),
        weights_sha256=_sha256(files),
        tokenizer_sha256=_sha256(_tokenizer_files(folder)),
        config_sha256=_sha256([Path(folder, "config.json")]),
        trust_remote_code=trust_remote_code,
    )


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's fast tokenizer.

    Raises:
        JobError: it has none, or that of a model with more embeddings.
    """
    folder = checkpoint.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=checkpoint.trust_remote_code)
    except Exception as e:  # transformers, tokenizers and a checkpoint's own code raise what they like
        raise _no_tokenizer(folder, f"{type(e).__name__}: {first_line(e)}") from e
    if not getattr(tokenizer, "is_fast", False):
        raise _no_tokenizer(folder, f"{type(tokenizer).__name__} is none")
    # Without a vocabulary transformers makes one of special tokens alone; own code may read files of any name.
    if not (_vocabularies(folder) or type(tokenizer).__module__.startswith("transformers_modules.")):
        raise _no_tokenizer(folder, "it has no vocabulary")
    _check_ids(tokenizer, checkpoint)
    return tokenizer


def _no_tokenizer(folder: str, reason: str) -> JobError:
    why = reason if _vocabularies(folder) else "none of tokenizer.json, vocab.txt, vocab.json and *.model is there"
    return JobError(
        f"model.name: {folder} has no fast tokenizer: {why}. Save the model's own beside it: "
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
    )


def _check_ids(tokenizer: Any, checkpoint: Checkpoint) -> None:
    """Every token must have an embedding, but for added ones, which come only where a text spells them."""
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    highest = max([*vocabulary.values(), *tokenizer("")["input_ids"]], default=0)
    if checkpoint.vocab_size is not None and highest >= checkpoint.vocab_size:
        msg = (
            f"model.name: the tokenizer in {checkpoint.folder} gives ids up to {highest}, but the model has "
            f"{checkpoint.vocab_size} embeddings: it is another model's. Save the model's own there"
        )
        raise JobError(msg)


def _config(folder: str, name: str, *, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as e:
        msg = f"model.name: {name} holds no configuration that transformers knows: {first_line(e)}"
        raise JobError(msg) from e
    if config.is_encoder_decoder or getattr(config, "is_decoder", False) or not hasattr(config, "num_hidden_layers"):
        msg = f"model.name: {name} is a {config.model_type} model, not an encoder such as BERT or RoBERTa"
        raise JobError(msg)
    return config


def _weight_files(folder: str, name: str) -> list[Path]:
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        msg = f"model.name: {name} has no safetensors weights, and pickles are not loaded. Convert it once and save it"
        raise JobError(msg)
    return files


def _weight_names(files: list[Path]) -> frozenset[str]:
    """What the files' headers say that is in them."""
    names: set[str] = set()
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                names.update(weights.keys())
        except (SafetensorError, OSError) as e:
            msg = (
                f"model.name: {file} ({file.stat().st_size:,} bytes) is no whole safetensors file: {first_line(e)}. "
                "Was it fetched without git-lfs, or not to its end? Fetch it again"
            )
            raise JobError(msg) from e
    return frozenset(names)


class _Code(NamedTuple):
    """What only a model's code says of it."""

    prefix: str  # of the encoder's weights in a checkpoint with a head
    first_position: int
    has_pooler: bool


def _known_code(config: PreTrainedConfig) -> _Code | None:
    """Of a known architecture by the library's own code; None of any other."""
    if config.model_type not in _KNOWN or getattr(config, "auto_map", None):
        return None
    prefix, behind_padding, has_pooler = _KNOWN[config.model_type]
    padding = config.pad_token_id if behind_padding else None
    return _Code(prefix, 0 if padding is None else padding + 1, has_pooler)


def _imported_code(config: PreTrainedConfig, *, trust_remote_code: bool) -> _Code:
    """Of any architecture, from a model without weights."""
    import torch  # noqa: PLC0415 (see the top)
    from transformers import AutoModel  # noqa: PLC0415 (likewise)

    from varve.encoder.checkpoint.positions import first_position  # noqa: PLC0415 (likewise)

    with torch.device("meta"):
        empty = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    has_pooler = isinstance(getattr(empty, "pooler", None), torch.nn.Module)
    return _Code(empty.base_model_prefix, first_position(empty), has_pooler)


def _shape(config: PreTrainedConfig, code: _Code, names: frozenset[str]) -> ModelShape:
    pooler = ("pooler.", f"{code.prefix}.pooler.")
    has_head = any("ForSequenceClassification" in name for name in config.architectures or ())
    return ModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_labels=(config.num_labels or 0) if has_head else 0,
        has_pooler=code.has_pooler and any(name.startswith(pooler) for name in names),
    )


def _max_positions(config: PreTrainedConfig, code: _Code) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    return positions - code.first_position if isinstance(positions, int) and positions > 0 else None


def _vocabularies(folder: str) -> list[Path]:
    return [
        file
        for pattern in ("tokenizer*.json", "vocab.*", "*.model")
        for file in Path(folder).glob(pattern)
        if file.name != "tokenizer_config.json"
    ]


def _tokenizer_files(folder: str) -> list[Path]:
    patterns = ("tokenizer*.json", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")
    return sorted({file for pattern in patterns for file in Path(folder).glob(pattern)})


def _sha256(files: list[Path]) -> str:
    """One hash over the files' contents, in the order of their names; that of a single file is its own."""
    hashes = []
    for file in files:
        with file.open("rb") as content:
            hashes.append(hashlib.file_digest(content, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
