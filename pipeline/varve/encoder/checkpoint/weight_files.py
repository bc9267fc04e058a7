"""The files from which transformers loads a checkpoint's weights, and the shapes in their headers.

Standard library only; reads no weights. Invariant: every file is directly in the checkpoint's folder (there it may be a
symbolic link, as in the Hub's cache), so what is loaded is part of what is hashed.
"""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varve.encoder.checkpoint.json_file import UnreadableFileError, read_json
from varve.errors import JobError, first_line

Shape = tuple[int, ...]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_INDEX_BYTES = 64 * 2**20
_MAX_HEADER_BYTES = 32 * 2**20  # a tensor takes about 120 bytes
_AGAIN = "It may be a git-lfs pointer or an interrupted download: download it again"


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a checkpoint, not loaded."""

    files: tuple[Path, ...]  # all safetensors files of the folder, also unused ones; hashes cover them
    shapes: Mapping[str, Shape]  # of the weights that are loaded


def read_weights(folder: Path, name: str, config: Mapping[str, Any]) -> Weights:
    """Find the weights as transformers does, and read the headers of their files.

    Args:
        folder: of the checkpoint.
        name: `model.name`, for messages.
        config: content of config.json, which may name the file.

    Raises:
        JobError: a file is missing, incomplete, malformed or outside the folder.
    """
    files = tuple(sorted(path for path in folder.glob("*.safetensors") if path.is_file()))
    named = config.get("transformers_weights")
    main = _SINGLE if (folder / _SINGLE).is_file() else _INDEX
    if named is not None:
        main = _check_name(str(named), "config.json", name)
    if main.endswith(".json") and (named is not None or (folder / main).exists()):
        return Weights(files, _read_sharded(folder, main, name))
    if not (folder / main).is_file():
        found = f" It has {files[0].name}, which transformers does not read." if files else ""
        msg = (
            f"model.name: {name} has no safetensors weights ({_SINGLE}), and pickled weights are not loaded.{found} "
            "Convert the weights: load the model with transformers and call save_pretrained"
        )
        raise JobError(msg)
    return Weights(files, read_shapes(folder / main))


def _check_name(file: str, where: str, name: str) -> str:
    """Refuse a path that may lead out of the folder; transformers would load it, unhashed."""
    if file in {"", ".", ".."} or "/" in file or "\\" in file or "\0" in file:
        msg = (
            f"model.name: {name}: {where} names the weights {file!r}: expected the name of a file in the same folder. "
            "Nothing outside of the model's folder is loaded"
        )
        raise JobError(msg)
    return file


def _read_sharded(folder: Path, index: str, name: str) -> dict[str, Shape]:
    try:
        content = read_json(folder / index, _MAX_INDEX_BYTES)
    except UnreadableFileError as e:
        msg = f"model.name: {name}: {folder / index} {e}. Download it again"
        raise JobError(msg) from e
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        msg = f"model.name: {name}: {folder / index} has no weight_map of weights to files. Download it again"
        raise JobError(msg)
    shapes: dict[str, Shape] = {}
    for file in sorted({_check_name(file, index, name) for file in files.values()}):
        if not (folder / file).is_file():
            msg = (
                f"model.name: {name}: {file} is missing, although {index} names it: the download is not complete. "
                "Download the model again"
            )
            raise JobError(msg)
        shapes |= read_shapes(folder / file)
    if absent := sorted(files.keys() - shapes.keys()):
        lacking = f"{files[absent[0]]} lacks the weight {absent[0]!r:.90}"
        msg = f"model.name: {name}: {lacking}, which {index} expects in it. Download the model again"
        raise JobError(msg)
    return shapes


def read_shapes(file: Path) -> dict[str, Shape]:
    """Names and shapes of all weights of a file, from its header."""
    try:
        with file.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            header = _parse_header(content.read(8), content.read, size)
    except (OSError, ValueError, RecursionError) as e:
        size = file.stat().st_size
        msg = f"model.name: {file} ({size:,} bytes) is not a complete safetensors file: {first_line(e)}. {_AGAIN}"
        raise JobError(msg) from e
    return header


def _parse_header(start: bytes, read: Any, size: int) -> dict[str, Shape]:
    """The header after its length: 8 bytes, then JSON of each tensor's shape and place.

    Raises:
        ValueError: it is malformed, or the file is shorter than its tensors.
    """
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > min(_MAX_HEADER_BYTES, size - 8):
        msg = f"its header would have {length:,} bytes"
        raise ValueError(msg)
    header = json.loads(read(length))
    header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(header, dict) or not header or not all(map(_is_tensor, header.values())):
        msg = "its header does not describe tensors"
        raise ValueError(msg)
    expected = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
    if size != expected:
        msg = f"its tensors need {expected:,} bytes"
        raise ValueError(msg)
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}


def _is_tensor(tensor: Any) -> bool:
    if not isinstance(tensor, dict):
        return False
    lists = (tensor.get("shape"), tensor.get("data_offsets"))
    return (
        all(isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers) for numbers in lists)
        and len(tensor["data_offsets"]) == 2
    )
