"""Resolves a job's model settings against a checkpoint: feature plan, tokenizer, lengths, dtype, pack and block sizes.

Knows an inspected checkpoint, not its weights. Invariant: importing this file does not import model code, which takes
seconds.
"""

from collections.abc import Mapping

from varve.config.feature import Feature
from varve.config.model import NO_ATTENTIONS_OF_WINDOWS, Model, Windows
from varve.encoder.checkpoint.inspection import Checkpoint, load_tokenizer
from varve.encoder.feature_plan import FeaturePlan, plan_features
from varve.errors import JobError
from varve.preprocessing.tokenizer import Tokenizer

# Larger packs are not measurably faster on a CPU and need more memory; a GPU needs larger ones to be busy.
_CPU_TOKENS_PER_PACK = 1024
# tokens x hidden size^2 of a pack. A GPU's time per token grows with the square of the hidden size, the host's time per
# pack does not: with this much work the host is faster than the device.
_CUDA_WORK_PER_PACK = 262_144 * 384**2
_CUDA_TOKENS_PER_PACK = (16_384, 262_144)  # minimum and maximum
# Maximum rows of a block: enough to sort by length and, on a GPU, for at least one pack even if texts are short; few
# enough to hold all their features in memory.
_MAX_BLOCK_ROWS = {"cpu": 1024, "cuda": 8192}
# Progress, the watchdog and a graceful stop work block by block, so a block of long texts or a large model has fewer
# rows. Minimum sizes keep all lanes busy; on a CPU, where packs are small, a block takes some seconds.
_MIN_BLOCK_PACKS = 16
_CPU_WORK_PER_BLOCK = 131_072 * 384**2  # tokens x hidden size^2


def make_feature_plan(
    model: Model, features: Mapping[str, Feature], checkpoint: Checkpoint, output_dtype: str
) -> FeaturePlan:
    """Compile a job's features for a checkpoint.

    Raises:
        JobError: the checkpoint cannot compute a feature, or `model.long_text` excludes it.
    """
    windows = model.long_text
    if isinstance(windows, Windows) and any(feature.pool == "attentions" for feature in features.values()):
        raise JobError(NO_ATTENTIONS_OF_WINDOWS)
    per_window = isinstance(windows, Windows) and windows.vectors == "window"
    return plan_features(features, checkpoint.shape, dtype=output_dtype, per_window=per_window)


def make_tokenizer(model: Model, checkpoint: Checkpoint, feature_plan: FeaturePlan) -> Tokenizer:
    """The checkpoint's tokenizer, which truncates long texts or cuts them into windows as the job defines."""
    windows = model.long_text if isinstance(model.long_text, Windows) else None
    return Tokenizer(
        load_tokenizer(checkpoint),
        resolve_max_tokens(model, checkpoint),
        windows=windows is not None,
        stride=windows.stride if windows else 0,
        spans=feature_plan.wants("tokens") or feature_plan.has_windows,
        vocab_size=checkpoint.vocab_size,
    )


def resolve_max_tokens(model: Model, checkpoint: Checkpoint) -> int:
    """Maximum number of tokens of a window; `auto` is 512, or the model's positions if there are fewer.

    Raises:
        JobError: the job's number exceeds the model's positions.
    """
    positions = checkpoint.max_positions
    key, max_tokens = "model.max_tokens", model.max_tokens
    if isinstance(model.long_text, Windows):
        key, max_tokens = "model.long_text.window", model.long_text.window
    if max_tokens == "auto":
        return min(512, positions or 512)
    if positions is not None and max_tokens > positions:
        msg = (
            f"{key}: {max_tokens} exceeds the {positions} positions of {model.name}. "
            "Lower it, set model.long_text to cut long texts into windows, or use an encoder with more positions"
        )
        raise JobError(msg)
    return max_tokens


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` is float32 on a CPU and float16 on CUDA (an eighth of bfloat16's rounding error at the same speed)."""
    if dtype != "auto":
        return dtype
    return "float16" if device == "cuda" else "float32"


def default_tokens_per_pack(device: str, checkpoint: Checkpoint) -> int:
    """Maximum number of tokens in one forward pass."""
    if device != "cuda":
        return _CPU_TOKENS_PER_PACK
    minimum, maximum = _CUDA_TOKENS_PER_PACK
    tokens = _CUDA_WORK_PER_PACK // checkpoint.shape.hidden_size**2
    return max(minimum, min(maximum, tokens // 1024 * 1024))


def default_block_rows(device: str, checkpoint: Checkpoint, tokens_per_pack: int, tokens_per_row: float) -> int:
    """Rows of a block, which is encoded together: a power of two."""
    tokens = _MIN_BLOCK_PACKS * tokens_per_pack
    if device == "cpu":
        tokens = max(tokens, _CPU_WORK_PER_BLOCK // checkpoint.shape.hidden_size**2)
    rows = max(1, int(tokens / max(1.0, tokens_per_row)))
    return min(_MAX_BLOCK_ROWS[device], 1 << rows.bit_length() - 1)
