"""Inspects a checkpoint: its files, hashes, shape and tokenizer. Reads no weights into memory.

Accepts only safetensors, and remote code only if the job allows it. Knows nothing of texts, batches or outputs.
Invariant: for a known architecture no model code is imported, which takes seconds.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from varve.encoder.checkpoint.config_file import read_config
from varve.encoder.checkpoint.consistency import check_consistency
from varve.encoder.checkpoint.declaration import Declaration
from varve.encoder.checkpoint.declared_vectors import read_declared_vectors
from varve.encoder.checkpoint.hub import fetch
from varve.encoder.checkpoint.weight_files import Shape, read_weights
from varve.encoder.feature_plan import ModelShape
from varve.errors import JobError, first_line, one_line

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

_MAX_TOKENIZER_BYTES = 128 * 2**20  # the largest known has 34 MB


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An inspected checkpoint; its weights are not loaded."""

    name: str  # as the job names it, for messages
    root: str  # folder that holds modules.json, if there is one
    commit: str | None  # of a Hub id; None for a local folder
    shape: ModelShape
    max_positions: int | None  # maximum number of tokens of a window; None: no limit
    vocab_size: int | None  # number of token embeddings; None: unknown
    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str
    trust_remote_code: bool
    body: str = ""  # folder of the encoder, relative to the root
    tokenizer: str = ""  # folder of the tokenizer, relative to the root
    declaration: Declaration | None = None  # of the job's role; None: nothing, or nothing that can be computed
    problem: str | None = None  # why the declared vectors cannot be computed

    @property
    def folder(self) -> str:
        """The encoder's folder."""
        return str(Path(self.root, self.body))

    @property
    def tokenizer_folder(self) -> str:
        """The tokenizer's folder."""
        return str(Path(self.root, self.tokenizer))


def inspect_checkpoint(
    name: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    role: str = "none",
    prompt: str | None = None,
) -> Checkpoint:
    """Download a checkpoint if necessary, and inspect it.

    Args:
        name: Hub id or folder.
        revision: of a Hub id.
        trust_remote_code: code of the checkpoint may run.
        role: of the texts (none, query or document), which decides what the checkpoint declares.
        prompt: of the job, in place of a declared one.

    Raises:
        JobError: the checkpoint does not exist, is not an encoder, has no complete safetensors weights, its
            configuration does not fit them, or it does not define the role.
    """
    root, commit = fetch(name, revision)
    declared = read_declared_vectors(Path(root), name, role, prompt=prompt)
    folder = str(Path(root, declared.body))
    tokenizer = declared.declaration.tokenizer if declared.declaration else declared.body
    content = read_config(Path(folder), name)
    weights = read_weights(Path(folder), name, content)
    check_consistency(content, weights.shapes, name)
    config = _load_config(folder, name, trust_remote_code=trust_remote_code)
    check_consistency(config.to_dict(), weights.shapes, name)
    code = _known_code(config) or _import_code(config, weights.shapes, name, trust_remote_code=trust_remote_code)
    return Checkpoint(
        name=name,
        root=root,
        body=declared.body,
        tokenizer=tokenizer,
        declaration=declared.declaration,
        problem=declared.problem,
        commit=commit,
        shape=_shape(config, code, weights.shapes),
        max_positions=_max_positions(config, code),
        vocab_size=getattr(config, "vocab_size", None),
        weights_sha256=hash_files(weights.files),
        tokenizer_sha256=hash_files(_find_tokenizer_files(str(Path(root, tokenizer)), name)),
        config_sha256=hash_files([Path(folder, "config.json")]),
        trust_remote_code=trust_remote_code,
    )


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint's fast tokenizer.

    Raises:
        JobError: the checkpoint has no fast tokenizer, or the tokenizer has more tokens than the model has embeddings.
    """
    folder = checkpoint.tokenizer_folder
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
    """Load the configuration; its basic sizes are positive integers."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as e:  # configurations check and derive their values with code of their own
        msg = f"model.name: {name} has no configuration that transformers can read: {_describe(e)}"
        raise JobError(msg) from e
    if config.is_encoder_decoder:
        msg = f"model.name: {name} is a {config.model_type} model, which needs two texts: an encoder with a decoder"
        raise JobError(msg)
    for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        value = getattr(config, key, None)
        if value is None:
            msg = (
                f"model.name: {name} is a {config.model_type} model, not a model of text such as BERT: it has no {key}"
            )
            raise JobError(msg)
        if type(value) is not int or value < 1:
            msg = f"model.name: {name}: {key} in config.json is {value!r:.40}: expected a number above 0"
            raise JobError(msg)
    return config


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


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


def _import_code(config: PreTrainedConfig, shapes: Mapping[str, Shape], name: str, *, trust_remote_code: bool) -> _Code:
    """The properties of any architecture, from a model without weights, whose shapes must be those of the weights."""
    import torch  # noqa: PLC0415 (imported for unknown architectures only, as the module docstring promises)
    from transformers import AutoModel  # noqa: PLC0415 (as above)

    from varve.encoder.checkpoint.positions import first_position  # noqa: PLC0415 (as above)

    try:
        with torch.device("meta"):
            empty = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as e:  # models check their configuration with code of their own
        msg = f"model.name: {name}: transformers cannot make a {config.model_type} model from it: {_describe(e)}"
        raise JobError(msg) from e
    _compare_shapes(empty, shapes, name)
    has_pooler = isinstance(getattr(empty, "pooler", None), torch.nn.Module)
    return _Code(empty.base_model_prefix, first_position(empty), has_pooler)


def _compare_shapes(model: Any, shapes: Mapping[str, Shape], name: str) -> None:
    """Compare the weights that keep their name, which is most; loading compares all."""
    prefix = f"{model.base_model_prefix}."
    for weight, tensor in model.state_dict().items():
        shape = shapes.get(weight, shapes.get(prefix + weight))
        if shape is not None and shape != tuple(tensor.shape):
            msg = (
                f"model.name: {name}: the weight {weight} has the shape {list(shape)}, but config.json implies "
                f"{list(tensor.shape)}. The configuration does not belong to these weights: download the model again"
            )
            raise JobError(msg)


def _shape(config: PreTrainedConfig, code: _Code, weight_names: Iterable[str]) -> ModelShape:
    pooler = ("pooler.", f"{code.prefix}.pooler.")
    architectures = config.architectures if isinstance(config.architectures, list) else []
    has_head = any("ForSequenceClassification" in str(name) for name in architectures)
    return ModelShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_labels=(config.num_labels or 0) if has_head else 0,
        has_pooler=code.has_pooler and any(name.startswith(pooler) for name in weight_names),
        vocab_size=config.vocab_size if any("ForMaskedLM" in str(name) for name in architectures) else 0,
    )


def _max_positions(config: PreTrainedConfig, code: _Code) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    return positions - code.first_position if isinstance(positions, int) and positions > 0 else None


def _has_vocabulary(folder: str) -> bool:
    files = _find_files(folder, "tokenizer*.json", "vocab.*", "*.model")
    return any(file.name != "tokenizer_config.json" for file in files)


def _find_tokenizer_files(folder: str, name: str) -> list[Path]:
    files = _find_files(
        folder, "tokenizer*.json", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json"
    )
    for file in files:
        if (size := file.stat().st_size) > _MAX_TOKENIZER_BYTES:
            limit = _MAX_TOKENIZER_BYTES // 2**20
            msg = f"model.name: {name}: {file.name} has {size:,} bytes: a tokenizer's file has {limit} MiB at most"
            raise JobError(msg)
    return files


def _find_files(folder: str, *patterns: str) -> list[Path]:
    """The regular files that match; opening anything else, such as a named pipe, could wait for ever."""
    return sorted({file for pattern in patterns for file in Path(folder).glob(pattern) if file.is_file()})


def hash_files(files: Sequence[Path]) -> str:
    """The SHA-256 of a single file, or of the concatenated hashes of several files in order."""
    hashes = []
    for file in files:
        with file.open("rb") as content:
            hashes.append(hashlib.file_digest(content, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
