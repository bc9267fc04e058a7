"""Inspects a checkpoint: its files, hashes, shape and tokenizer. Reads no weights into memory.

Accepts only safetensors, and remote code only if the job allows it. Knows nothing of texts, batches or outputs.
Invariant: for a known architecture no model code is imported, which takes seconds.
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

# Properties that only the model code of transformers defines, for the most used architectures (a test compares them):
# model type → (prefix of the encoder's weights, positions start after padding_idx, has a pooler).
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
    """An inspected checkpoint; its weights are not loaded."""

    folder: str
    commit: str | None  # of a Hub id; None for a local folder
    shape: ModelShape
    max_positions: int | None  # maximum number of tokens of a window; None: no limit
    vocab_size: int | None  # number of token embeddings; None: unknown
    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str
    trust_remote_code: bool


def inspect_checkpoint(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Checkpoint:
    """Download a checkpoint if necessary, and inspect it.

    Raises:
        JobError: the checkpoint does not exist, is not an encoder, or has no complete safetensors weights.
    """
    folder, commit = fetch(name, revision)
    config = _load_config(folder, name, trust_remote_code=trust_remote_code)
    weight_files = _find_weight_files(folder, name)
    weight_names = _read_weight_names(weight_files)
    code = _known_code(config) or _import_code(config, trust_remote_code=trust_remote_code)
    return Checkpoint(
        folder=folder,
        commit=commit,
        shape=_shape(config, code, weight_names),
        max_positions=_max_positions(config, code),
        vocab_size=getattr(config, "vocab_size", None),
        weights_sha256=_sha256(weight_files),
        tokenizer_sha256=_sha256(_find_tokenizer_files(folder)),
        config_sha256=_sha256([Path(folder, "config.json")]),
        trust_remote_code=trust_remote_code,
    )


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint's fast tokenizer.

    Raises:
        JobError: the checkpoint has no fast tokenizer, or the tokenizer has more tokens than the model has embeddings.
    """
    folder = checkpoint.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=checkpoint.trust_remote_code)
    except Exception as e:  # transformers, tokenizers and a checkpoint's own code raise many types
        raise _tokenizer_error(folder, f"{type(e).__name__}: {first_line(e)}") from e
    if not getattr(tokenizer, "is_fast", False):
        raise _tokenizer_error(folder, f"{type(tokenizer).__name__} is a slow one")
    # Without a vocabulary transformers makes one of special tokens alone. Remote code may read files with any name.
    if not (_has_vocabulary(folder) or type(tokenizer).__module__.startswith("transformers_modules.")):
        raise _tokenizer_error(folder, "it has no vocabulary")
    _check_ids(tokenizer, checkpoint)
    return tokenizer


def _tokenizer_error(folder: str, reason: str) -> JobError:
    if not _has_vocabulary(folder):
        reason = "it contains none of tokenizer.json, vocab.txt, vocab.json and *.model"
    return JobError(
        f"model.name: {folder} has no fast tokenizer: {reason}. Save the model's tokenizer to the same folder: "
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
    )


def _check_ids(tokenizer: Any, checkpoint: Checkpoint) -> None:
    """Check that every token has an embedding, except added tokens, which occur only in texts that contain them."""
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    highest = max([*vocabulary.values(), *tokenizer("")["input_ids"]], default=0)
    if checkpoint.vocab_size is not None and highest >= checkpoint.vocab_size:
        msg = (
            f"model.name: the tokenizer in {checkpoint.folder} has token ids up to {highest}, but the model has "
            f"{checkpoint.vocab_size} embeddings: it belongs to another model. Save the model's tokenizer there"
        )
        raise JobError(msg)


def _load_config(folder: str, name: str, *, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as e:
        msg = f"model.name: {name} has no configuration that transformers can read: {first_line(e)}"
        raise JobError(msg) from e
    if config.is_encoder_decoder or getattr(config, "is_decoder", False) or not hasattr(config, "num_hidden_layers"):
        msg = f"model.name: {name} is a {config.model_type} model, not an encoder such as BERT or RoBERTa"
        raise JobError(msg)
    return config


def _find_weight_files(folder: str, name: str) -> list[Path]:
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        msg = f"model.name: {name} has no safetensors weights, and pickled weights are not loaded. Convert the weights"
        raise JobError(msg)
    return files


def _read_weight_names(files: list[Path]) -> frozenset[str]:
    """Names of all weights, from the files' headers."""
    names: set[str] = set()
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                names.update(weights.keys())
        except (SafetensorError, OSError) as e:
            msg = (
                f"model.name: {file} ({file.stat().st_size:,} bytes) is not a complete safetensors file: "
                f"{first_line(e)}. It may be a git-lfs pointer or an interrupted download: download it again"
            )
            raise JobError(msg) from e
    return frozenset(names)


class _Code(NamedTuple):
    """Properties that a model's code defines, not its configuration."""

    prefix: str  # of the encoder's weights in a checkpoint with a head
    first_position: int
    has_pooler: bool


def _known_code(config: PreTrainedConfig) -> _Code | None:
    """The properties of a known architecture with the code of transformers; None for any other model."""
    if config.model_type not in _KNOWN or getattr(config, "auto_map", None):
        return None
    prefix, after_padding, has_pooler = _KNOWN[config.model_type]
    padding = config.pad_token_id if after_padding else None
    return _Code(prefix, 0 if padding is None else padding + 1, has_pooler)


def _import_code(config: PreTrainedConfig, *, trust_remote_code: bool) -> _Code:
    """The properties of any architecture, from a model without weights."""
    import torch  # noqa: PLC0415 (imported for unknown architectures only, as the module docstring promises)
    from transformers import AutoModel  # noqa: PLC0415 (as above)

    from varve.encoder.checkpoint.positions import first_position  # noqa: PLC0415 (as above)

    with torch.device("meta"):
        empty = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    has_pooler = isinstance(getattr(empty, "pooler", None), torch.nn.Module)
    return _Code(empty.base_model_prefix, first_position(empty), has_pooler)


def _shape(config: PreTrainedConfig, code: _Code, weight_names: frozenset[str]) -> ModelShape:
    pooler = ("pooler.", f"{code.prefix}.pooler.")
    has_head = any("ForSequenceClassification" in name for name in config.architectures or ())
    return ModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_labels=(config.num_labels or 0) if has_head else 0,
        has_pooler=code.has_pooler and any(name.startswith(pooler) for name in weight_names),
    )


def _max_positions(config: PreTrainedConfig, code: _Code) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    return positions - code.first_position if isinstance(positions, int) and positions > 0 else None


def _has_vocabulary(folder: str) -> bool:
    files = [file for pattern in ("tokenizer*.json", "vocab.*", "*.model") for file in Path(folder).glob(pattern)]
    return any(file.name != "tokenizer_config.json" for file in files)


def _find_tokenizer_files(folder: str) -> list[Path]:
    patterns = ("tokenizer*.json", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")
    return sorted({file for pattern in patterns for file in Path(folder).glob(pattern)})


def _sha256(files: list[Path]) -> str:
    """The SHA-256 of a single file, or of the concatenated hashes of several files in order."""
    hashes = []
    for file in files:
        with file.open("rb") as content:
            hashes.append(hashlib.file_digest(content, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
