"""The trained model as one torch module: it standardises vectors, mixes layers if needed, and predicts.

Knows nothing of rows or files. Linear models and networks are both of this class, so that predicting and saving have
one implementation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from varve.probe.data.feature_matrix import Matrix

_BATCH_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Inputs, hidden layers and outputs of a head."""

    vector_width: int  # of all features side by side
    mixed_layers: int  # layers of equal width that are mixed into one; 0: no mix
    handcrafted_width: int
    hidden: tuple[int, ...]  # units of each hidden layer; empty: a linear model
    outputs: int  # classes, or 1 for a number


class Head(nn.Module):
    """Vectors and hand-crafted numbers → logits (N, classes), or values (N, 1)."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("mean", torch.zeros(shape.vector_width))
        self.register_buffer("scale", torch.ones(shape.vector_width))
        if shape.mixed_layers:
            self.mix = nn.Parameter(torch.zeros(shape.mixed_layers))
        sizes = [shape.vector_width // max(1, shape.mixed_layers) + shape.handcrafted_width, *shape.hidden]
        layers: list[nn.Module] = []
        for inputs, units in zip(sizes, shape.hidden, strict=False):
            layers += [nn.Linear(inputs, units), nn.ReLU(), nn.Dropout(dropout)]
        self.body = nn.Sequential(*layers, nn.Linear(sizes[-1], shape.outputs))

    @property
    def layer_weights(self) -> list[float]:
        """Weight of each layer in the mix; they add to 1. Empty without a mix."""
        return torch.softmax(self.mix, 0).tolist() if self.shape.mixed_layers else []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(N, vector_width + handcrafted_width) → (N, outputs)."""
        width = self.shape.vector_width
        vectors = (inputs[:, :width] - self.mean) / self.scale
        if self.shape.mixed_layers:
            layers = vectors.unflatten(1, (self.shape.mixed_layers, -1))
            vectors = torch.einsum("nld,l->nd", layers, torch.softmax(self.mix, 0))
        return self.body(torch.cat([vectors, inputs[:, width:]], dim=1))

    def state(self) -> dict[str, NDArray[np.float32]]:
        """The tensors by name."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_state(cls, shape: Shape, state: Mapping[str, Any]) -> "Head":
        """A head with these tensors or arrays, which are converted to float32."""
        head = cls(shape)
        head.load_state_dict({name: torch.as_tensor(np.asarray(values)) for name, values in state.items()})
        return head.eval()

    @torch.inference_mode()
    def scores(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, inputs) → (N, classes) probabilities, or (N, 1) values."""
        outputs = self(torch.from_numpy(np.ascontiguousarray(inputs, np.float32)).to(self.mean.device))
        return (torch.softmax(outputs, 1) if self.shape.outputs > 1 else outputs).cpu().numpy()

    def scores_of(self, matrix: Matrix) -> NDArray[np.float32]:
        """The scores of all rows of a matrix, computed in batches."""
        self.eval()
        chunks = (chunk for _, chunk in matrix.chunks())
        return np.concatenate(
            [self.scores(chunk[at : at + _BATCH_ROWS]) for chunk in chunks for at in range(0, len(chunk), _BATCH_ROWS)]
        )
