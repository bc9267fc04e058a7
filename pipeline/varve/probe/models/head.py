"""The trained thing as one torch module: it standardises vectors, mixes layers if asked to, and predicts.

Knows nothing of rows or files. Linear models and networks alike end here, so there is one way to predict and save.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from varve.probe.data.feature_matrix import Matrix

_PIECE_ROWS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a head takes and gives."""

    vector_width: int  # of all features side by side
    mixed_layers: int  # layers of equal width that are mixed into one; 0: laid side by side
    handcrafted_width: int
    hidden: tuple[int, ...]  # units of each hidden layer; none: a linear model
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
    def last(self) -> nn.Linear:
        """The layer that gives the outputs."""
        layer = self.body[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def layer_weights(self) -> list[float]:
        """How much of each layer the mix takes; empty without one. They add to 1."""
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
        """Its tensors, by name."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_state(cls, shape: Shape, state: dict[str, Any]) -> "Head":
        """A head with these tensors."""
        head = cls(shape)
        head.load_state_dict({name: torch.as_tensor(np.asarray(values)) for name, values in state.items()})
        return head.eval()

    @torch.inference_mode()
    def scores(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, classes) probabilities, or (N, 1) values."""
        given = torch.from_numpy(np.ascontiguousarray(inputs, np.float32)).to(self.mean.device)
        found = self(given)
        return (torch.softmax(found, 1) if self.shape.outputs > 1 else found).cpu().numpy()

    def scores_of(self, matrix: Matrix) -> NDArray[np.float32]:
        """The scores of a whole matrix, a piece at a time."""
        self.eval()
        return np.concatenate(list(self._pieces(matrix)))

    def _pieces(self, matrix: Matrix) -> Iterator[NDArray[np.float32]]:
        for _, piece in matrix.pieces():
            for start in range(0, len(piece), _PIECE_ROWS):
                yield self.scores(piece[start : start + _PIECE_ROWS])


def linear_head(
    shape: Shape,
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    weights: NDArray[np.floating],
    bias: NDArray[np.floating],
) -> Head:
    """A head with the weights (outputs, inputs) and bias (outputs,) of a linear model on standardised inputs."""
    head = Head(shape)
    state = {"mean": mean, "scale": scale, "body.0.weight": weights, "body.0.bias": bias}
    head.load_state_dict({name: torch.as_tensor(np.asarray(values, np.float32)) for name, values in state.items()})
    return head.eval()
