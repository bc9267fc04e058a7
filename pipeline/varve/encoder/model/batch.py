"""The two layouts in which a pack reaches a model, and the way back to ragged hidden states.

A *packed* batch is one row (1, T) of windows laid end to end, without padding or mask. A *dense* batch is padded (B, L)
with a mask, for models whose attention can't be replaced. Both give hidden states back in the ragged form (T, H). The
device never waits for the host here: arrays go to a GPU from pinned memory, and every size is known on the host.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from varve.encoder.checkpoint.positions import first_position
from varve.encoder.kernels.attention_tiles import Tiles, cut
from varve.encoder.kernels.gpu_support import attends_in_tiles
from varve.encoder.model.attention import HALF, Runs
from varve.encoder.packing import Pack


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass takes, and how to read its hidden states."""

    inputs: dict[str, Any]
    cu_seqlens: Tensor  # (w + 1,) int64 offsets of the windows in the ragged form
    real: Tensor | None  # (t,) where the real tokens stand in a flattened (B, L); None for a packed batch

    def ragged(self, hidden: Tensor) -> Tensor:
        """Bring (1, T, H) or (B, L, H) hidden states into the ragged form (T, H).

        Between its layers a model may hold more padding than it was given: Longformer fills up to its window.
        """
        if self.real is None:
            return hidden[0]
        return hidden[:, : self.inputs["input_ids"].shape[1]].flatten(0, 1)[self.real]


def packed_batch(model: PreTrainedModel, pack: Pack, start: int | None = None) -> Batch:
    """Lay a pack out as one packed row; the kwargs are transformers' own `FlashAttentionKwargs`, and the runs.

    Args:
        model: that takes it.
        pack: of windows.
        start: position id of a window's first token; looked for in the model when None, which takes a millisecond.
    """
    start = first_position(model) if start is None else start
    offsets = pack.cu_seqlens
    starts = np.repeat(offsets[:-1], pack.lengths)
    positions = _positions(pack.input_ids, starts, start)
    cu_seqlens = _to(model.device, offsets)
    longest = int(pack.lengths[-1])
    inputs: dict[str, Any] = {
        "input_ids": _to(model.device, pack.input_ids.astype(np.int64))[None],
        "position_ids": _to(model.device, positions)[None],
        "cu_seq_lens_q": cu_seqlens.int(),
        "cu_seq_lens_k": cu_seqlens.int(),
        "max_length_q": longest,
        "max_length_k": longest,
        "runs": _runs(pack.lengths),
    }
    if model.device.type == "cuda" and model.dtype in HALF and attends_in_tiles():
        table, parts = cut(pack.lengths)
        inputs["tiles"] = Tiles(_to(model.device, table), parts)
    if takes_token_types(model):
        # Models fill in absent types from a buffer as long as their positions, which a packed row outgrows.
        types = None if pack.token_type_ids is None else _to(model.device, pack.token_type_ids.astype(np.int64))[None]
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"]) if types is None else types
    return Batch(inputs, cu_seqlens, None)


def dense_batch(model: PreTrainedModel, pack: Pack) -> Batch:
    """Lay a pack out as a padded batch with a mask."""
    mask = np.arange(int(pack.lengths[-1])) < pack.lengths[:, None]
    pad = model.config.pad_token_id
    inputs = {
        "input_ids": _to(model.device, _padded(pack.input_ids, mask, 0 if pad is None else pad)),
        "attention_mask": _to(model.device, mask.astype(np.int64)),
    }
    if pack.token_type_ids is not None and takes_token_types(model):
        inputs["token_type_ids"] = _to(model.device, _padded(pack.token_type_ids, mask, 0))
    return Batch(inputs, _to(model.device, pack.cu_seqlens), _to(model.device, np.flatnonzero(mask)))


def takes_token_types(model: PreTrainedModel) -> bool:
    """Whether the model's forward takes token_type_ids."""
    return _takes_token_types(type(model))


@cache
def _takes_token_types(kind: type[PreTrainedModel]) -> bool:
    return "token_type_ids" in inspect.signature(kind.forward).parameters


def _positions(input_ids: NDArray[np.int32], starts: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """(T,) position ids, counted from `start` in each window.

    Models that start behind their padding_idx (RoBERTa's family) give that position to every token with that id, also
    where a text says "<pad>", and do not count it. Source: transformers' `create_position_ids_from_input_ids`.
    """
    positions = np.arange(len(input_ids)) - starts + start
    padding = input_ids == start - 1
    if padding.any():
        so_far = np.cumsum(padding)
        positions -= so_far - (so_far - padding)[starts]
        positions[padding] = start - 1
    return positions


def _runs(lengths: NDArray[np.int64]) -> Runs:
    edges = np.flatnonzero(np.diff(lengths, prepend=0, append=0))
    firsts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[edges]
    return Runs(
        [
            (int(first), int(stop - start), int(lengths[start]))
            for first, start, stop in zip(firsts[:-1], edges[:-1], edges[1:], strict=True)
        ]
    )


def _padded(values: NDArray[np.int32], mask: NDArray[np.bool_], fill: int) -> NDArray[np.int64]:
    padded = np.full(mask.shape, fill, np.int64)
    padded[mask] = values
    return padded


def _to(device: torch.device, array: NDArray[np.integer]) -> Tensor:
    """To the device without making either side wait for the other."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
