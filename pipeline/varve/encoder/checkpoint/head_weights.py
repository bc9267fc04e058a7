"""The files with the weights of heads: found, with the shapes in their headers.

Standard library only. Invariant: only safetensors are accepted; a pickle is refused with the command that converts it.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from varve.encoder.checkpoint.weight_files import Shape, read_shapes
from varve.errors import JobError


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """A file with the weights of one head."""

    file: str  # relative to the checkpoint's root
    shapes: Mapping[str, Shape]

    def matrix(self, weight: str) -> tuple[int, int]:
        """Rows and columns of a weight.

        Raises:
            JobError: it is not a matrix.
        """
        shape = self.shapes[weight]
        if len(shape) != 2:
            msg = f"model.name: {self.file}: the weight {weight} has the shape {list(shape)}: expected a matrix"
            raise JobError(msg)
        return shape[0], shape[1]

    def length(self, weight: str) -> int:
        """Numbers of a weight.

        Raises:
            JobError: it is not a vector.
        """
        shape = self.shapes[weight]
        if len(shape) != 1:
            msg = f"model.name: {self.file}: the weight {weight} has the shape {list(shape)}: expected a vector"
            raise JobError(msg)
        return shape[0]

    def check_shape(self, weight: str, *shape: int) -> None:
        """Refuse a weight that has another shape; it may be absent.

        Raises:
            JobError: it has.
        """
        if self.shapes.get(weight, shape) != shape:
            found, expected = list(self.shapes[weight]), list(shape)
            msg = f"model.name: {self.file}: the weight {weight} has the shape {found}: expected {expected}"
            raise JobError(msg)


def find_weights(root: Path, folder: str, name: str, *needed: str, stem: str = "model") -> HeadWeights:
    """The weights of a head.

    Args:
        root: of the checkpoint.
        folder: of the head, relative to the root.
        name: `model.name`, for messages.
        needed: weights that the file must have.
        stem: name of the file without its suffix.

    Raises:
        JobError: the file is missing or pickled, is not a complete safetensors file, or lacks a weight.
    """
    file = str(PurePosixPath(folder, f"{stem}.safetensors"))
    path = root / file
    if not path.is_file():
        raise JobError(_missing(root, folder, name, stem, file))
    shapes = read_shapes(path)
    if absent := [weight for weight in needed if weight not in shapes]:
        msg = f"model.name: {name}: {file} lacks the weight {absent[0]}. Download the model again"
        raise JobError(msg)
    return HeadWeights(file, shapes)


def _missing(root: Path, folder: str, name: str, stem: str, file: str) -> str:
    pickles = [path for path in (f"{stem}.pt", f"pytorch_{stem}.bin") if (root / folder / path).is_file()]
    if not pickles:
        return f"model.name: {name}: {file} is missing, although the checkpoint declares it. Download the model again"
    pickled = root / folder / pickles[0]
    return (
        f"model.name: {name}: the weights in {PurePosixPath(folder, pickles[0])} are pickled, and pickles are not "
        f"loaded. Convert them once: {_conversion(pickled, root / file)}"
    )


def _conversion(pickled: Path, converted: Path) -> str:
    """A command that loads tensors alone, without running code of the pickle."""
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "weights = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "save_file({name: weight.contiguous() for name, weight in weights.items()}, sys.argv[2])"
    )
    return f'python -c "{code}" {shlex.quote(str(pickled))} {shlex.quote(str(converted))}'
