"""Resolves a job's model settings against a checkpoint: feature plan, tokenizer, lengths, dtype, pack and block sizes.

Knows an inspected checkpoint, not its weights. Invariant: importing this file does not import model code, which takes
seconds.
"""

from collections.abc import Mapping
from typing import Any

from varve.config.feature import Feature
from varve.config.model import NO_ATTENTIONS_OF_WINDOWS, Model, Windows
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.declaration import TextRules
from varve.encoder.checkpoint.heads import find_heads, text_rules, uses_declaration
from varve.encoder.checkpoint.pretrained_tokenizer import load_tokenizer
from varve.encoder.feature_columns import plan_features
from varve.encoder.feature_plan import FeaturePlan
from varve.errors import JobError
from varve.preprocessing.query_expansion import QueryExpansion
from varve.preprocessing.tokenizer import Tokenizer

_DEFAULT_TOKENS = 512
_MOST_TOKENS = 131_072  # of a declared length; tokenizers without a limit say 10^30

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
    heads = find_heads(features, checkpoint)
    per_row = windows.per_row if isinstance(windows, Windows) else "vector"
    return plan_features(features, checkpoint.shape, dtype=output_dtype, heads=heads, per_row=per_row)


def make_tokenizer(model: Model, checkpoint: Checkpoint, feature_plan: FeaturePlan, *, fast: bool = True) -> Tokenizer:
    """The checkpoint's tokenizer, which truncates long texts or cuts them into windows as the job defines.

    fast: use a faster implementation where it gives the tokens of `tokenizers`.
    """
    windows = model.long_text if isinstance(model.long_text, Windows) else None
    rules = text_rules(model, feature_plan, checkpoint)
    pretrained = load_tokenizer(checkpoint)
    max_tokens = resolve_max_tokens(model, checkpoint, feature_plan)
    tokenizer = Tokenizer(
        pretrained,
        max_tokens,
        windows=windows is not None,
        stride=windows.stride if windows else 0,
        spans=feature_plan.needs_spans,
        vocab_size=checkpoint.vocab_size,
        prompt=rules.prompt,
        lower_case=rules.lower_case,
        added_words=rules.markers,
        expansion=_expansion(rules, pretrained),
        chunks=windows.chunk if windows else None,
        fast=fast,
    )
    if rules.prompt:
        _check_room(tokenizer, max_tokens, windows)
    return tokenizer


def _expansion(rules: TextRules, pretrained: Any) -> QueryExpansion | None:
    if rules.expansion is None:
        return None
    token = rules.expansion.token
    ids = [pretrained.convert_tokens_to_ids(token)] if token else [pretrained.mask_token_id, pretrained.eos_token_id]
    known = [token_id for token_id in ids if token_id is not None]
    if not known:
        msg = "model.role: query: the tokenizer has no mask token, with which the checkpoint expands queries"
        raise JobError(msg)
    return QueryExpansion(rules.expansion.length, known[0], attend=rules.expansion.attend)


def _check_room(tokenizer: Tokenizer, max_tokens: int, windows: Windows | None) -> None:
    """Reject lengths without room for the special tokens, the prompt, one token of text, and the windows' overlap."""
    reserved = tokenizer.reserved_tokens
    least = reserved + 1 + (windows.stride if windows else 0)
    if max_tokens < least:
        key = "model.long_text.window" if windows else "model.max_tokens"
        msg = f"{key}: {max_tokens} leaves no room for text after the prompt ({reserved} tokens): set {least} or more"
        raise JobError(msg)


def resolve_max_tokens(model: Model, checkpoint: Checkpoint, feature_plan: FeaturePlan) -> int:
    """Maximum number of tokens of a window.

    `auto` is the length that the checkpoint declares, if its declaration is used; else 512, or the model's positions if
    there are fewer.

    Raises:
        JobError: the job's number exceeds the model's positions.
    """
    positions = checkpoint.max_positions if feature_plan.needs_model else None
    key, max_tokens = "model.max_tokens", model.max_tokens
    if isinstance(model.long_text, Windows):
        key, max_tokens = "model.long_text.window", model.long_text.window
    if max_tokens == "auto":
        declared = _declared_tokens(model, checkpoint, feature_plan)
        return min(declared, positions or declared)
    if positions is not None and max_tokens > positions:
        msg = (
            f"{key}: {max_tokens} exceeds the {positions} positions of {model.name}. "
            "Lower it, set model.long_text to cut long texts into windows, or use an encoder with more positions"
        )
        raise JobError(msg)
    return max_tokens


def _declared_tokens(model: Model, checkpoint: Checkpoint, feature_plan: FeaturePlan) -> int:
    if not uses_declaration(model, feature_plan) or checkpoint.declaration is None:
        return _DEFAULT_TOKENS
    declared = text_rules(model, feature_plan, checkpoint).max_tokens
    pretrained = load_tokenizer(checkpoint) if declared is None or not feature_plan.needs_model else None
    declared = min(pretrained.model_max_length, _MOST_TOKENS) if declared is None and pretrained else declared
    # Fixed weights of tokens are looked up without special tokens, which therefore take no room.
    special = 0 if feature_plan.needs_model or pretrained is None else pretrained.num_special_tokens_to_add()
    return (declared or _DEFAULT_TOKENS) + special


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
