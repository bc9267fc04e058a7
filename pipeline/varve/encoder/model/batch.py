"""The two layouts in which a pack reaches a model, and the conversion back to ragged hidden states.

A *packed* batch is one row (1, T) of concatenated windows, without padding or mask. A *dense* batch is padded (B, L)
with a mask, for models whose attention cannot be replaced. Both convert hidden states back to the ragged form (T, H).
Invariant: the host and the GPU never wait for each other here: arrays go to a GPU from pinned memory, and every size is
known on the host.
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
from varve.encoder.kernels.attention_tiles import Tiles, make_tiles
from varve.encoder.kernels.gpu_support import can_attend_packed
from varve.encoder.model.attention import HALF, Runs
from varve.encoder.packing import Pack


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one forward pass, and where its tokens are."""

    inputs: dict[str, Any]
    cu_seqlens: Tensor  # (W + 1,) int64 first token of each window in the ragged form
    token_indices: Tensor | None  # (T,) indices of the tokens in a flattened (B, L); None for a packed batch

    def ragged(self, hidden: Tensor) -> Tensor:
        """Convert (1, T, H) or (B, L, H) hidden states to the ragged form (T, H).

        Between its layers a model may have more padding than its input: Longformer pads to its attention window.
        """
        if self.token_indices is None:
            return hidden[0]
        return hidden[:, : self.inputs["input_ids"].shape[1]].flatten(0, 1)[self.token_indices]


def packed_batch(model: PreTrainedModel, pack: Pack, start: int | None = None) -> Batch:
    """A pack as one packed row, with transformers' `FlashAttentionKwargs`, `runs` and, on a GPU, `tiles`.

    Args:
        model: the model that runs it.
        pack: windows, ascending by length.
        start: position id of a window's first token. None: read from the model, which takes a millisecond.
    """
    assert pack.attended is None, "packed attention has no mask: every token attends to all tokens of its window"
    start = first_position(model) if start is None else start
    device = model.device  # read once: transformers searches the modules for it
    offsets = pack.cu_seqlens
    positions = _positions(pack.input_ids, np.repeat(offsets[:-1], pack.lengths), start)
    cu_seqlens = _to(device, offsets)
    longest = int(pack.lengths[-1])
    inputs: dict[str, Any] = {
        "input_ids": _to(device, pack.input_ids.astype(np.int64))[None],
        "position_ids": _to(device, positions)[None],
        "cu_seq_lens_q": cu_seqlens.int(),
        "cu_seq_lens_k": cu_seqlens.int(),
        "max_length_q": longest,
        "max_length_k": longest,
        "runs": _runs(pack.lengths),
    }
    if device.type == "cuda" and model.dtype in HALF and can_attend_packed():
        table, groups = make_tiles(pack.lengths)
        inputs["tiles"] = Tiles(_to(device, table), groups)
    if _takes(type(model), "token_type_ids"):
        # Without token types, models use a buffer as long as their positions, which is too short for a packed row.
        types = None if pack.token_type_ids is None else _to(device, pack.token_type_ids.astype(np.int64))[None]
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"]) if types is None else types
    return Batch(inputs, cu_seqlens, None)


def dense_batch(model: PreTrainedModel, pack: Pack, *, token_types: bool) -> Batch:
    """A pack as a padded batch with a mask.

    Tokens of an expanded query that others do not attend to are masked as padding is; they have hidden states too.

    Args:
        model: the model that runs it.
        pack: windows, ascending by length.
        token_types: the checkpoint's tokenizer gives `token_type_ids`. Most models use 0 without them; GPT-2 adds
            nothing without them, and the vector of token 0 with them.
    """
    mask = np.arange(int(pack.lengths[-1])) < pack.lengths[:, None]
    attended = mask if pack.attended is None else np.arange(mask.shape[1]) < pack.attended[:, None]
    pad = model.config.pad_token_id
    inputs = {
        "input_ids": _to(model.device, _padded(pack.input_ids, mask, 0 if pad is None else pad)),
        "attention_mask": _to(model.device, attended.astype(np.int64)),
    }
    if token_types and _takes(type(model), "token_type_ids"):
        types = np.zeros_like(pack.input_ids) if pack.token_type_ids is None else pack.token_type_ids
        inputs["token_type_ids"] = _to(model.device, _padded(types, mask, 0))
    return Batch(inputs, _to(model.device, pack.cu_seqlens), _to(model.device, np.flatnonzero(mask)))


def tokenizer_inputs(model: PreTrainedModel, window: NDArray[np.int32], *, token_types: bool) -> dict[str, Tensor]:
    """The inputs of one window as the checkpoint's own tokenizer gives them, if the model takes them.

    Args:
        model: the model that runs it.
        window: token ids of a single text.
        token_types: the tokenizer gives `token_type_ids`, 0 for a single text.
    """
    ids = torch.from_numpy(window.astype(np.int64))[None].to(model.device)
    inputs = {"input_ids": ids}
    if _takes(type(model), "attention_mask"):
        inputs["attention_mask"] = torch.ones_like(ids)
    if token_types and _takes(type(model), "token_type_ids"):
        inputs["token_type_ids"] = torch.zeros_like(ids)
    return inputs


@cache
def _takes(model_class: type[PreTrainedModel], argument: str) -> bool:
    return argument in inspect.signature(model_class.forward).parameters


def _positions(input_ids: NDArray[np.int32], starts: NDArray[np.int64], start: int) -> NDArray[np.int64]:
    """(T,) position ids, counted from `start` in each window; `starts` is the first token of each token's window.

    Models that start after their padding_idx (RoBERTa's family) give position padding_idx to every token with that id,
    even if the text contains "<pad>", and skip it in the count. Source: transformers'
    `create_position_ids_from_input_ids`.
    """
    positions = np.arange(len(input_ids)) - starts + start
    padding = input_ids == start - 1
    if padding.any():
        num_padding = np.cumsum(padding)
        positions -= num_padding - (num_padding - padding)[starts]
        positions[padding] = start - 1
    return positions


def _runs(lengths: NDArray[np.int64]) -> Runs:
    edges = np.flatnonzero(np.diff(lengths, prepend=0, append=0))
    starts = edges[:-1]
    first_tokens = (np.cumsum(lengths) - lengths)[starts]
    return Runs(list(zip(first_tokens.tolist(), np.diff(edges).tolist(), lengths[starts].tolist(), strict=True)))


def _padded(values: NDArray[np.int32], mask: NDArray[np.bool_], fill: int) -> NDArray[np.int64]:
    padded = np.full(mask.shape, fill, np.int64)
    padded[mask] = values
    return padded


def _to(device: torch.device, array: NDArray[np.integer]) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
