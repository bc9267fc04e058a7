"""The tokens over which a pack is pooled: those of its windows, of its windows without the prompt, or of its chunks.

Knows nothing of layers and poolings. Invariant: the tokens of every unit are consecutive in what `all_tokens` and
`text_tokens` return, and every unit has at least one.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from varve.encoder.packing import Index, Pack
from varve.preprocessing.tokens import starts_of


@dataclass
class Units:
    """What is pooled of one pack.

    Attributes:
        pack: the windows.
        cu_seqlens: (W + 1,) where each window starts, on the device.
        prompt_tokens: first tokens of each window that belong to the prompt.
    """

    pack: Pack
    cu_seqlens: Tensor
    prompt_tokens: int

    def all_tokens(self, hidden_TH: Tensor) -> tuple[Tensor, Tensor]:
        """The token vectors of all units, and (U + 1,) where each unit starts."""
        if self.pack.chunk_tokens is None:
            return hidden_TH, self.cu_seqlens
        index, starts = self._chunks
        return hidden_TH[index], starts

    def text_tokens(self, hidden_TH: Tensor) -> tuple[Tensor, Tensor]:
        """As `all_tokens`, without the tokens of the prompt; chunks have none."""
        if self.pack.chunk_tokens is not None or not self.prompt_tokens:
            return self.all_tokens(hidden_TH)
        index, starts = self._text
        return hidden_TH[index], starts

    @cached_property
    def _chunks(self) -> tuple[Tensor, Tensor]:
        return self._on_device(*self.pack.chunk_index())

    @cached_property
    def _text(self) -> tuple[Tensor, Tensor]:
        starts = self.pack.cu_seqlens
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1], self.pack.lengths)
        first = np.minimum(self.prompt_tokens, self.pack.lengths - 1)
        is_text = positions >= np.repeat(first, self.pack.lengths)
        return self._on_device(np.flatnonzero(is_text), starts_of(self.pack.lengths - first))

    def _on_device(self, index: Index, starts: Index) -> tuple[Tensor, Tensor]:
        device = self.cu_seqlens.device
        return torch.from_numpy(index).to(device), torch.from_numpy(starts).to(device)
