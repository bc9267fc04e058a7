"""Inspects a checkpoint: its files, hashes, shape and tokenizer. Reads no weights into memory.

Accepts only safetensors, and remote code only if the job allows it. Knows nothing of texts, batches or outputs.
Invariant: for a known architecture no model code is imported, which takes seconds.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, PreTrainedConfig

from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.config_file import read_config
from varve.encoder.checkpoint.consistency import check_consistency
from varve.encoder.checkpoint.declared_vectors import read_declared_vectors
from varve.encoder.checkpoint.hub import fetch
from varve.encoder.checkpoint.pretrained_tokenizer import find_tokenizer_files
from varve.encoder.checkpoint.weight_files import Shape, read_weights
from varve.encoder.feature_plan import ModelShape
from varve.errors import JobError, one_line

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
        tokenizer_sha256=hash_files(find_tokenizer_files(str(Path(root, tokenizer)), name)),
        config_sha256=hash_files([Path(folder, "config.json")]),
        trust_remote_code=trust_remote_code,
    )


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


def hash_files(files: Sequence[Path]) -> str:
    """The SHA-256 of a single file, or of the concatenated hashes of several files in order."""
    hashes = []
    for file in files:
        with file.open("rb") as content:
            hashes.append(hashlib.file_digest(content, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
