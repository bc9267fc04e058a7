"""The comparison with eager transformers that every checkpoint passes before it is used.

Random windows go through the model as it will be run and, one by one, through plain eager attention, in float32 and
before any cast. What decides is the numbers: some models say that they take any attention function and are then wrong.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from varve.encoder.kernels.cpu_library import CpuLibrary
from varve.encoder.model.attention import PACKED, takes_packed_inputs
from varve.encoder.model.batch import Batch, dense_batch, packed_batch
from varve.encoder.model.cls_only_layer import ClsOnlyLayer
from varve.encoder.model.fused_layers import join_steps, part_steps
from varve.encoder.model.fused_linear import use_kernel
from varve.encoder.model.heads import run_head, run_pooler, takes_mean
from varve.encoder.model.layer_hooks import LayerHooks
from varve.encoder.model.mpnet import adapt_mpnet
from varve.encoder.packing import Pack
from varve.errors import JobError, first_line

# Right paths differ by about 1e-6 in float32, wrong ones by more than 1e-2.
TOLERANCE = 1e-4
_LENGTHS = (3, 9, 9, 150)  # two of equal length, and one beyond the usual sliding windows


def choose_layout(
    model: PreTrainedModel, hooks: LayerHooks, max_positions: int | None, *, kernel: CpuLibrary | None = None
) -> tuple[str, str]:
    """Decide between the packed and the dense layout, and set the model's attention accordingly.

    Args:
        model: in float32.
        hooks: on its layers.
        max_positions: tokens that the model can take.
        kernel: that is to run its linear layers, before they are compared with what torch's own give.

    Returns:
        ("packed" or "dense", why).

    Raises:
        JobError: neither layout gives the numbers of eager transformers.
    """
    windows = _probe(model, max_positions)
    model.set_attn_implementation("eager")
    want = [_eager(model, window) for window in windows]
    if kernel:
        use_kernel(model, kernel)
    reason = can_pack(model, hooks, windows, want)
    if reason is None:
        if (kernel or model.device.type == "cuda") and join_steps(model) and _packed_fault(model, hooks, windows, want):
            part_steps(model)  # written like BERT's, and something else
        return "packed", "equal to eager attention on every layer"
    for attention in ("sdpa", "eager"):
        if attention == "sdpa" and not getattr(model, "_supports_sdpa", False):
            continue
        model.set_attn_implementation(attention)
        difference = _difference(model, hooks, dense_batch(model, Pack.of_windows(windows)), want)
        if difference < TOLERANCE:
            return "dense", f"{reason}; padded batches with {attention} attention equal it"
    msg = (
        f"model: {type(model).__name__} in batches differs from one text at a time by {difference:.1e} "
        f"(relative; allowed {TOLERANCE:.0e}). It can't be encoded exactly"
    )
    raise JobError(msg)


def can_pack(
    model: PreTrainedModel, hooks: LayerHooks, windows: list[np.ndarray], want: list[list[Tensor]]
) -> str | None:
    """Whether packed rows are exact for this model: None, or the reason why not. Leaves packed attention set."""
    if not adapt_mpnet(model):
        if not takes_packed_inputs(model):
            return "its attention can't be replaced"
        try:
            model.set_attn_implementation(PACKED)
        except (RuntimeError, ValueError, TypeError, KeyError) as e:
            return f"packed attention is refused: {type(e).__name__}"
    return _packed_fault(model, hooks, windows, want)


def _packed_fault(
    model: PreTrainedModel, hooks: LayerHooks, windows: list[np.ndarray], want: list[list[Tensor]]
) -> str | None:
    """What is wrong with packed rows as the model stands; None where nothing is."""
    try:
        difference = _difference(model, hooks, packed_batch(model, Pack.of_windows(windows)), want)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as e:
        return f"packed rows fail: {type(e).__name__}"
    return None if difference < TOLERANCE else f"packed rows differ by {difference:.1e}"


@torch.inference_mode()
def can_narrow(model: PreTrainedModel, first_tokens: ClsOnlyLayer, max_positions: int | None) -> bool:
    """Whether a packed model's last layer gives first tokens the same vectors when it runs for them alone."""
    batch = packed_batch(model, Pack.of_windows(_probe(model, max_positions)))
    first = batch.cu_seqlens[:-1]
    want = model(**batch.inputs).last_hidden_state[0, first]
    try:
        with first_tokens.only(first):
            got = model(**batch.inputs).last_hidden_state[0]
    except (RuntimeError, ValueError, TypeError, IndexError):  # something behind it wants all tokens
        return False
    return got.shape == want.shape and _relative(got, want) < TOLERANCE


@torch.inference_mode()
def check_head(classifier: PreTrainedModel, max_positions: int | None) -> None:
    """Compare the head on finished vectors with the whole classification model.

    Raises:
        JobError: they differ, so `logits` can't be computed beside other features.
    """
    encoder: Any = classifier.base_model
    encoder.set_attn_implementation("eager")
    for window in _probe(encoder, max_positions):
        ids = torch.from_numpy(window.astype(np.int64))[None].to(encoder.device)
        want = classifier(input_ids=ids).logits.float()
        last = encoder(input_ids=ids).last_hidden_state
        vector = last.mean(1) if takes_mean(classifier) else last[:, 0]
        pooled = run_pooler(encoder, last[:, 0]) if getattr(encoder, "pooler", None) is not None else None
        if not _gives(classifier, vector, pooled, want):
            name = type(classifier).__name__
            msg = f"model: the head of {name} looks at more than one vector: logits are not available"
            raise JobError(msg)


def _gives(classifier: PreTrainedModel, vector: Tensor, pooled: Tensor | None, want: Tensor) -> bool:
    """Whether the head on one window's finished vectors gives these logits."""
    try:
        return not _relative(run_head(classifier, vector, pooled), want) > TOLERANCE
    except (ValueError, TypeError, IndexError, KeyError, AttributeError):  # it asks the encoder for more
        return False


def _probe(model: PreTrainedModel, max_positions: int | None) -> list[np.ndarray]:
    """Random windows, shortest first, of ids from the upper half of the vocabulary (special tokens stand low).

    One holds a pad token, as a text may that speaks of it: some models count positions without it.
    """
    draw = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    longest = max(_LENGTHS[-1], (getattr(model.config, "sliding_window", None) or 0) + 22)
    lengths = [min(length, max_positions or longest) for length in (*_LENGTHS[:-1], longest)]
    windows = [draw.integers(vocabulary // 2, vocabulary, length).astype(np.int32) for length in lengths]
    if model.config.pad_token_id is not None:
        windows[1][lengths[1] // 2] = model.config.pad_token_id
    return windows


@torch.inference_mode()
def _eager(model: PreTrainedModel, window: np.ndarray) -> list[Tensor]:
    """All hidden states of one window, each (T, H), by the library's own means."""
    ids = torch.from_numpy(window.astype(np.int64))[None].to(model.device)
    try:
        return [hidden[0] for hidden in model(input_ids=ids, output_hidden_states=True).hidden_states]
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as e:
        why = f"{type(e).__name__}: {first_line(e)}"
        msg = f"model: {type(model).__name__} can't be run on the tokens of a text alone: {why}"
        raise JobError(msg) from e


@torch.inference_mode()
def _difference(model: PreTrainedModel, hooks: LayerHooks, batch: Batch, want: list[list[Tensor]]) -> float:
    """The largest relative difference over all layers between a batch and the windows one by one."""
    last = len(want[0]) - 1
    got: dict[int, Tensor] = {}
    with hooks.open(range(last), lambda index, hidden: got.update({index: batch.ragged(hidden)}), stop_at=None):
        got[last] = batch.ragged(model(**batch.inputs).last_hidden_state)
    if len(got) <= last:
        return float("inf")
    return max(_relative(got[index], torch.cat([window[index] for window in want])) for index in range(last + 1))


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp_min(1e-12))
