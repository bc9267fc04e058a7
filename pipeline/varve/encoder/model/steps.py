"""The steps that a checkpoint declares after or before its pooling, applied in float32: Dense, LayerNorm, Normalize.

Knows nothing of tokens and rows: every step maps N vectors to N vectors. Invariant: a file is read once, and all its
numbers are finite.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from varve.encoder.checkpoint.head import Dense, LayerNorm, Normalize, Step
from varve.errors import JobError, first_line

# Source: sentence-transformers 6.2, base/modules/dense.py; GELU is the exact one.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda vectors: vectors,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "relu": torch.relu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
}


class Steps:
    """Steps with their weights on a device."""

    def __init__(self, steps: Sequence[Step], root: str, device: torch.device) -> None:
        """Load the weights.

        Args:
            steps: to apply, in this order.
            root: folder of the checkpoint, to which the files of the steps are relative.
            device: of the vectors.

        Raises:
            JobError: a file cannot be read, or has weights that are not finite.
        """
        self._steps = tuple(steps)
        self._weights = {
            step.file: _load(Path(root, step.file), device) for step in steps if not isinstance(step, Normalize)
        }

    def __call__(self, vectors_ND: Tensor) -> Tensor:
        """(N, D) vectors → (N, D') float32 vectors."""
        vectors = vectors_ND.float()
        for step in self._steps:
            match step:
                case Dense():
                    vectors = _dense(step, self._weights[step.file], vectors)
                case LayerNorm():
                    vectors = _layer_norm(self._weights[step.file], vectors)
                case Normalize():
                    vectors = functional.normalize(vectors, dim=-1)
        return vectors


def _dense(step: Dense, weights: Mapping[str, Tensor], vectors: Tensor) -> Tensor:
    linear = functional.linear(vectors, weights[f"{step.prefix}weight"], weights.get(f"{step.prefix}bias"))
    result = _ACTIVATIONS[step.activation](linear)
    if not step.residual:
        return result
    projection = weights.get("residual.weight")
    return result + (vectors if projection is None else functional.linear(vectors, projection))


def _layer_norm(weights: Mapping[str, Tensor], vectors: Tensor) -> Tensor:
    return functional.layer_norm(vectors, vectors.shape[-1:], weights["norm.weight"], weights["norm.bias"])


def _load(file: Path, device: torch.device) -> dict[str, Tensor]:
    """The weights of a file in float32."""
    try:
        weights = {name: weight.float().to(device) for name, weight in load_file(file).items()}
    except (OSError, SafetensorError, ValueError) as e:
        msg = f"model.name: {file} cannot be read: {first_line(e)}. Download the model again"
        raise JobError(msg) from e
    for name, weight in weights.items():
        if not bool(weight.isfinite().all()):
            msg = (
                f"model.name: {file}: the weight {name} has numbers that are NaN or infinite. Download the model again"
            )
            raise JobError(msg)
    return weights
