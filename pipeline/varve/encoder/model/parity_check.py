"""The comparison with eager transformers that every checkpoint passes before it is used.

Random windows run through the model as it will be used and, one by one with the inputs that the checkpoint's tokenizer
gives, through eager attention, in float32 before any cast; with bfloat16 weights in compiled code they run again
afterwards. The numbers decide, because some models accept any attention
function and then compute something else. A model whose numbers are not finite is refused.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from varve.encoder.checkpoint.hub import first_line
from varve.encoder.kernels.cpu_library import CpuLibrary
from varve.encoder.model.attention import PACKED, takes_packed_rows
from varve.encoder.model.batch import Batch, dense_batch, packed_batch, tokenizer_inputs
from varve.encoder.model.cls_only_layer import ClsOnlyLayer
from varve.encoder.model.fused_embeddings import fuse_embeddings
from varve.encoder.model.fused_layers import fuse_layers, repack_layers, unfuse_layers
from varve.encoder.model.fused_linear import use_library
from varve.encoder.model.heads import run_head, run_pooler, takes_mean
from varve.encoder.model.layer_hooks import LayerHooks
from varve.encoder.model.mpnet import adapt_mpnet, is_mpnet
from varve.encoder.packing import Pack
from varve.errors import JobError

TOLERANCE = 1e-4  # relative: correct paths differ by about 1e-6 in float32, wrong ones by more than 1e-2
_BFLOAT16_TOLERANCE = 3e-2  # relative: rounding gives less than 1e-2, a wrong product about 1
_LENGTHS = (3, 9, 9, 150)  # two of equal length, and one longer than the usual sliding windows
_LONG = 1100  # tokens: compiled/attention.c takes other code paths from 256 and 1,024 tokens on, for heads of 64


@dataclass(frozen=True, slots=True)
class _Reference:
    """Windows, and the hidden states that eager transformers computes for each of them alone."""

    windows: list[NDArray[np.int32]]
    hidden: list[Tensor]  # for each layer, (T, H) of all windows
    stop_at: int | None = None  # passes end after this layer; None: after the last


def choose_layout(
    model: PreTrainedModel,
    hooks: LayerHooks,
    max_positions: int | None,
    max_tokens: int,
    *,
    token_types: bool,
    library: CpuLibrary | None = None,
) -> tuple[str, str]:
    """Choose the packed or the dense layout, and set the model's attention accordingly.

    Args:
        model: in float32.
        hooks: on the model's layers.
        max_positions: tokens that the model can take; None: unlimited.
        max_tokens: tokens of the longest windows that will be encoded.
        token_types: the checkpoint's tokenizer gives `token_type_ids`.
        library: replaces the model's linear layers and embeddings before the comparison; None: keep torch's.

    Returns:
        ("packed" or "dense", reason).

    Raises:
        JobError: neither layout gives the numbers of eager transformers, or these are not finite.
    """
    model.set_attn_implementation("eager")
    short = _run_short_windows(model, max_positions, token_types=token_types)
    references, reason = [short], "its attention cannot be replaced"
    can_pack = is_mpnet(model) or takes_packed_rows(model)
    if can_pack and max_tokens > len(short.windows[-1]):
        references.append(_run_long_window(model, hooks, min(max_tokens, _LONG), token_types=token_types))
    if library:
        use_library(model, library)
        fuse_embeddings(model, library)
    if can_pack and (reason := _set_packed_attention(model) or _packed_error(model, hooks, references)) is None:
        may_fuse = library is not None or model.device.type == "cuda"
        if may_fuse and fuse_layers(model) and _packed_error(model, hooks, references):
            unfuse_layers(model)  # has the modules of a BERT layer, but computes something else
        return "packed", "equal to eager attention on every layer"
    attention = _set_dense_attention(model, hooks, short, token_types=token_types)
    return "dense", f"{reason}; padded batches with {attention} attention equal it"


@torch.inference_mode()
def use_bfloat16(
    model: PreTrainedModel, library: CpuLibrary, max_positions: int | None, *, packed: bool, token_types: bool
) -> None:
    """Round the weights of a checked model's layers to bfloat16, and compare the outputs with those before.

    Args:
        model: whose linear layers a float32 library computes, in its final layout.
        library: with bfloat16 weights.
        max_positions: tokens that the model can take; None: unlimited.
        packed: the layout.
        token_types: the checkpoint's tokenizer gives `token_type_ids`.

    Raises:
        JobError: the outputs differ by more than rounding explains.
    """
    pack = Pack.of_windows(_draw_windows(model, max_positions))
    batch = packed_batch(model, pack) if packed else dense_batch(model, pack, token_types=token_types)
    want = batch.ragged(model(**batch.inputs).last_hidden_state)
    repack_layers(model, library)
    difference = _relative(batch.ragged(model(**batch.inputs).last_hidden_state), want)
    if not difference <= _BFLOAT16_TOLERANCE:
        msg = (
            f"model.dtype: with bfloat16 products {type(model).__name__} differs from float32 by {difference:.1e} "
            f"(relative; allowed {_BFLOAT16_TOLERANCE:.0e}). Set dtype: float32"
        )
        raise JobError(msg)


def _set_packed_attention(model: PreTrainedModel) -> str | None:
    """None, or why the model rejects packed attention."""
    if adapt_mpnet(model):
        return None
    try:
        model.set_attn_implementation(PACKED)
    except (RuntimeError, ValueError, TypeError, KeyError) as e:
        return f"packed attention is refused: {type(e).__name__}"
    return None


def _set_dense_attention(model: PreTrainedModel, hooks: LayerHooks, reference: _Reference, *, token_types: bool) -> str:
    """The first of torch's and eager attention that gives the reference's numbers in padded batches."""
    batch, difference = dense_batch(model, Pack.of_windows(reference.windows), token_types=token_types), math.inf
    for attention in ("sdpa", "eager") if getattr(model, "_supports_sdpa", False) else ("eager",):
        model.set_attn_implementation(attention)
        difference = _difference(model, hooks, batch, reference)
        if difference < TOLERANCE:
            return attention
    msg = (
        f"model: {type(model).__name__} cannot be encoded exactly: a batch differs from its texts one by one by "
        f"{difference:.1e} (relative; allowed {TOLERANCE:.0e})"
    )
    raise JobError(msg)


def _packed_error(model: PreTrainedModel, hooks: LayerHooks, references: list[_Reference]) -> str | None:
    """Why packed rows are wrong for the model in its current state; None if they equal the references."""
    for reference in references:
        try:
            batch = packed_batch(model, Pack.of_windows(reference.windows))
            difference = _difference(model, hooks, batch, reference)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as e:
            return f"packed rows fail: {type(e).__name__}"
        if not difference < TOLERANCE:
            return f"packed rows differ by {difference:.1e}"
    return None


@torch.inference_mode()
def is_cls_only_exact(model: PreTrainedModel, layer: ClsOnlyLayer, max_positions: int | None) -> bool:
    """Whether a packed model's last layer gives the same CLS vectors when it is computed for them only."""
    batch = packed_batch(model, Pack.of_windows(_draw_windows(model, max_positions)))
    first = batch.cu_seqlens[:-1]
    want = model(**batch.inputs).last_hidden_state[0, first]
    try:
        with layer.only(first):
            got = model(**batch.inputs).last_hidden_state[0]
    except (RuntimeError, ValueError, TypeError, IndexError):  # a later module needs all tokens
        return False
    return got.shape == want.shape and _relative(got, want) < TOLERANCE


@torch.inference_mode()
def check_head(classifier: PreTrainedModel, max_positions: int | None, *, token_types: bool) -> None:
    """Compare the head on precomputed vectors with the whole classification model.

    Args:
        classifier: in float32.
        max_positions: tokens that the model can take; None: unlimited.
        token_types: the checkpoint's tokenizer gives `token_type_ids`.

    Raises:
        JobError: they differ, so `logits` cannot be computed from the vectors of the encoder.
    """
    encoder: Any = classifier.base_model
    encoder.set_attn_implementation("eager")
    for window in _draw_windows(encoder, max_positions):
        inputs = tokenizer_inputs(encoder, window, token_types=token_types)
        want = classifier(**inputs).logits.float()
        last = encoder(**inputs).last_hidden_state
        vector = last.mean(1) if takes_mean(classifier) else last[:, 0]
        pooled = run_pooler(encoder, last[:, 0]) if getattr(encoder, "pooler", None) is not None else None
        try:
            difference = _relative(run_head(classifier, vector, pooled), want)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError):  # the head needs more of the encoder
            difference = math.inf
        if not difference <= TOLERANCE:
            name = type(classifier).__name__
            msg = f"model: the head of {name} reads more than one vector per text, so `logits` are not available"
            raise JobError(msg)


def _draw_windows(model: PreTrainedModel, max_positions: int | None) -> list[NDArray[np.int32]]:
    """Random windows, shortest first, of ids from the upper half of the vocabulary (special tokens have low ids).

    One contains the pad token, as a text with "<pad>" does: some models skip it when they count positions.
    """
    generator = np.random.default_rng(0)
    longest = max(_LENGTHS[-1], (getattr(model.config, "sliding_window", None) or 0) + 22)
    lengths = [min(length, max_positions or longest) for length in (*_LENGTHS[:-1], longest)]
    windows = [_draw(generator, model, length) for length in lengths]
    if model.config.pad_token_id is not None:
        windows[1][lengths[1] // 2] = model.config.pad_token_id
    return windows


def _draw(generator: np.random.Generator, model: PreTrainedModel, length: int) -> NDArray[np.int32]:
    vocabulary = model.config.vocab_size
    return generator.integers(vocabulary // 2, vocabulary, length).astype(np.int32)


@torch.inference_mode()
def _run_short_windows(model: PreTrainedModel, max_positions: int | None, *, token_types: bool) -> _Reference:
    windows = _draw_windows(model, max_positions)
    options = {"token_types": token_types, "output_hidden_states": True}
    states = [_run_alone(model, window, **options).hidden_states for window in windows]
    hidden = [torch.cat([hidden[0] for hidden in layer]) for layer in zip(*states, strict=True)]
    _check_finite(model, hidden)
    return _Reference(windows, hidden)


def _check_finite(model: PreTrainedModel, hidden: list[Tensor]) -> None:
    for layer, vectors in enumerate(hidden):
        if not bool(vectors.isfinite().all()):
            place = f"layer {layer}" if layer else "the embeddings"
            msg = (
                f"model: {type(model).__name__} gives NaN or infinity from {place} on, in float32 for tokens of its "
                "vocabulary. Its weights or its config.json are broken: download the model again, or use another one"
            )
            raise JobError(msg)


@torch.inference_mode()
def _run_long_window(model: PreTrainedModel, hooks: LayerHooks, length: int, *, token_types: bool) -> _Reference:
    """Run the lowest layers only, up to one of each type of attention: layers of one type share their code."""
    types = (getattr(model.config, "layer_types", None) or [None])[: model.config.num_hidden_layers]
    stop_at = max(types.index(each) for each in set(types)) + 1
    window, hidden = _draw(np.random.default_rng(1), model, length), []
    with hooks.open(range(stop_at + 1), lambda _, output: hidden.append(output[0]), stop_at=stop_at):
        _run_alone(model, window, token_types=token_types)
    _check_finite(model, hidden)
    return _Reference([window], hidden, stop_at)


def _run_alone(model: PreTrainedModel, window: NDArray[np.int32], *, token_types: bool, **options: Any) -> Any:
    try:
        return model(**tokenizer_inputs(model, window, token_types=token_types), **options)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as e:
        name, error = type(model).__name__, f"{type(e).__name__}: {first_line(e)}"
        msg = f"model: {name} cannot be run on the {len(window)} token ids of a single text: {error}"
        raise JobError(msg) from e


@torch.inference_mode()
def _difference(model: PreTrainedModel, hooks: LayerHooks, batch: Batch, reference: _Reference) -> float:
    """The largest relative difference between a batch and the reference over all its layers."""
    last = len(reference.hidden) - 1
    got: dict[int, Tensor] = {}

    def tap(layer: int, hidden: Tensor) -> None:
        got[layer] = batch.ragged(hidden)

    with hooks.open(range(last + 1), tap, stop_at=reference.stop_at):
        got[last] = batch.ragged(model(**batch.inputs).last_hidden_state)
    if len(got) <= last:
        return math.inf
    return max(_relative(got[layer], want) for layer, want in enumerate(reference.hidden))


def _relative(got: Tensor, want: Tensor) -> float:
    """Relative difference; infinite if only `got` contains NaN."""
    difference = float((got - want).norm() / want.norm().clamp_min(1e-12))
    return math.inf if math.isnan(difference) and bool(want.isfinite().all()) else difference
