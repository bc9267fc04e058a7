"""What a job leaves open about its model, settled from the checkpoint: layer plan, tokenizer, lengths, numbers' form.

Knows a checkpoint's facts and no weights. Invariant: importing this file brings no model's code, which takes seconds.
"""

from collections.abc import Mapping

from varve.config.feature import Feature
from varve.config.model import NO_ATTENTIONS_OF_WINDOWS, Model, Windows
from varve.encoder.checkpoint.inspection import Checkpoint, load_tokenizer
from varve.encoder.feature_plan import FeaturePlan, plan_features
from varve.errors import JobError
from varve.preprocessing.tokenizer import Tokenizer

# Larger packs on a CPU are no faster beyond noise and hold more memory; on a GPU packs keep it busy.
_CPU_TOKENS_PER_PACK = 1024
# A GPU works on a token for a time that grows with the square of the hidden size, its host on a pack for one that does
# not: tokens x hidden size^2 of a pack, so that the device works the longer.
_CUDA_WORK_PER_PACK = 262_144 * 384**2
_CUDA_TOKENS_PER_PACK = (16_384, 262_144)  # least and most
# Rows that are encoded together: enough to sort by length, few enough to be held with all their features. A GPU has a
# pack or several of them even where texts are short.
_MOST_BLOCK_ROWS = {"cpu": 1024, "cuda": 8192}
# A run counts by blocks: its line, its watch and its goodbye wait for one. A block of long texts or of a large model
# has fewer rows, but packs enough to keep lanes busy; on a CPU, where packs are small, as many as take some seconds.
_LEAST_BLOCK_PACKS = 16
_CPU_WORK_PER_BLOCK = 131_072 * 384**2  # tokens x hidden size^2


def make_feature_plan(
    model: Model, features: Mapping[str, Feature], checkpoint: Checkpoint, output_dtype: str
) -> FeaturePlan:
    """The layer plan of features of a checkpoint.

    Raises:
        JobError: the checkpoint, or the job's rule for long texts, does not have one of them.
    """
    windows = model.long_text
    if isinstance(windows, Windows) and any(feature.pool == "attentions" for feature in features.values()):
        raise JobError(NO_ATTENTIONS_OF_WINDOWS)
    per_window = isinstance(windows, Windows) and windows.vectors == "window"
    return plan_features(features, checkpoint.shape, dtype=output_dtype, per_window=per_window)


def make_tokenizer(model: Model, checkpoint: Checkpoint, plan: FeaturePlan) -> Tokenizer:
    """The checkpoint's tokenizer with the job's rule for long texts."""
    windows = model.long_text if isinstance(model.long_text, Windows) else None
    return Tokenizer(
        load_tokenizer(checkpoint),
        resolve_max_tokens(model, checkpoint),
        windows=windows is not None,
        stride=windows.stride if windows else 0,
        spans=plan.wants("tokens") or plan.has_windows,
        vocab_size=checkpoint.vocab_size,
    )


def resolve_max_tokens(model: Model, checkpoint: Checkpoint) -> int:
    """Tokens of a window: what the job says, or 512 at most.

    Raises:
        JobError: the model has fewer positions.
    """
    positions = checkpoint.max_positions
    key, wanted = "model.max_tokens", model.max_tokens
    if isinstance(model.long_text, Windows):
        key, wanted = "model.long_text.window", model.long_text.window
    if wanted == "auto":
        return min(512, positions or 512)
    if positions is not None and wanted > positions:
        msg = (
            f"{key}: {wanted} exceeds the {positions} positions of {model.name}. "
            "Lower it, take a long_text window, or use an encoder with a longer context"
        )
        raise JobError(msg)
    return wanted


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` is float16 on CUDA (eight times nearer to float32 than bfloat16 at the same speed), else float32."""
    if dtype != "auto":
        return dtype
    return "float16" if device == "cuda" else "float32"


def default_tokens_per_pack(device: str, checkpoint: Checkpoint) -> int:
    """Tokens of one forward pass of a checkpoint on a device."""
    if device != "cuda":
        return _CPU_TOKENS_PER_PACK
    least, most = _CUDA_TOKENS_PER_PACK
    tokens = _CUDA_WORK_PER_PACK // checkpoint.shape.hidden_size**2
    return max(least, min(most, tokens // 1024 * 1024))


def default_block_rows(device: str, checkpoint: Checkpoint, tokens_per_pack: int, tokens_per_row: float) -> int:
    """Rows that are encoded together on a device, a power of two."""
    tokens = _LEAST_BLOCK_PACKS * tokens_per_pack
    if device == "cpu":
        tokens = max(tokens, _CPU_WORK_PER_BLOCK // checkpoint.shape.hidden_size**2)
    rows = max(1, int(tokens / max(1.0, tokens_per_row)))
    return min(_MOST_BLOCK_ROWS[device], 1 << rows.bit_length() - 1)
