"""The compared variants by name; if time is short, the last ones are dropped first.

The ONNX and OpenVINO backends of sentence-transformers need optimum, which conflicts with the locked transformers
(optimum-onnx 0.1 needs < 4.58, optimum-intel 2.2 < 5.6). Here the engines replace the torch model inside
sentence-transformers, as those backends do it.

Reduced precision on a CPU: OpenVINO chooses bfloat16 itself where the CPU has it; the others run in float32 unless a
user asks for less.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

from tests.bench.engines import CTranslate2, FastEmbed, OnnxRuntime, OpenVino
from tests.bench.floor import Floor
from tests.bench.ours import Varve, VarveSorted
from tests.bench.peers import Reference, SentenceTransformers, Setup, Transformers

# By default glibc returns large buffers to the kernel after each operation; 32 MB is the highest threshold that it
# accepts. These settings were the fastest ones for sentence-transformers on a CPU.
TUNED_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
OURS = "varve"
NAIVE = "transformers, file order"
BOTH = ("cpu", "cuda")
CPU = ("cpu",)
CUDA = ("cuda",)


@dataclass(frozen=True, slots=True)
class Variant:
    """How a variant is constructed, and on which devices it runs."""

    make: Callable[[Setup], Any]
    devices: tuple[str, ...] = BOTH
    env: Mapping[str, str] = field(default_factory=dict)
    reduced: bool = False  # reported in the table of reduced precision


VARIANTS = {
    OURS: Variant(Varve),
    NAIVE: Variant(partial(Transformers, order="file", rows=32)),
    "sentence-transformers, 32 rows": Variant(partial(SentenceTransformers, rows=32)),
    "varve, all layers": Variant(partial(Varve, output="all")),
    "varve, CLS": Variant(partial(Varve, output="cls")),
    "varve, texts sorted": Variant(VarveSorted, CUDA),
    "varve, compiled": Variant(partial(Varve, compiled=True), CUDA),
    "sentence-transformers, 8 rows, malloc tuned": Variant(partial(SentenceTransformers, rows=8), CPU, TUNED_MALLOC),
    "openvino": Variant(partial(OpenVino, tokens=1024), CPU),
    "openvino, a batch per core": Variant(partial(OpenVino, tokens=1024, lanes=64), CPU),
    "onnxruntime": Variant(partial(OnnxRuntime, tokens=1024), CPU),
    "onnxruntime, a batch per core": Variant(partial(OnnxRuntime, tokens=1024, lanes=64), CPU),
    "ctranslate2": Variant(partial(CTranslate2, tokens=1024, lanes=64), CPU),
    "varve, bfloat16": Variant(partial(Varve, dtype="bfloat16"), CPU, reduced=True),
    "openvino, default precision, a batch per core": Variant(
        partial(OpenVino, tokens=1024, lanes=64, as_it_comes=True), CPU, reduced=True
    ),
    "ctranslate2, int8": Variant(partial(CTranslate2, tokens=1024, lanes=64, compute_type="int8"), CPU, reduced=True),
    "onnxruntime, int8, a batch per core": Variant(
        partial(OnnxRuntime, tokens=1024, lanes=64, kind="onnx-int8"), CPU, reduced=True
    ),
    "transformers, int8, sorted": Variant(partial(Transformers, rows=8, int8=True), CPU, reduced=True),
    "varve, layers <= half": Variant(partial(Varve, output="half")),
    "varve, layers <= 1": Variant(partial(Varve, output="first")),
    "transformers, sorted": Variant(partial(Transformers, rows=32)),
    "sentence-transformers, 8 rows": Variant(partial(SentenceTransformers, rows=8), CPU),
    "sentence-transformers, 256 rows": Variant(partial(SentenceTransformers, rows=256), CUDA),
    "sentence-transformers, onnxruntime": Variant(partial(SentenceTransformers, rows=8, engine=OnnxRuntime), CPU),
    "sentence-transformers, openvino": Variant(partial(SentenceTransformers, rows=8, engine=OpenVino), CPU),
    "fastembed": Variant(partial(FastEmbed, rows=8), CPU),
    "fastembed, int8": Variant(partial(FastEmbed, rows=8, kind="onnx-int8"), CPU, reduced=True),
}
# Not compared, but measured in the same rounds.
FLOOR = "floor"
REFERENCE = "reference"
_NOT_COMPARED = {FLOOR: Floor, REFERENCE: Reference}


def make(name: str, setup: Setup) -> Any:
    """Load a variant; a name with a colon is module:class."""
    if ":" in name:
        module, _, variant = name.partition(":")
        return getattr(import_module(module), variant)(setup)
    return _NOT_COMPARED[name](setup) if name in _NOT_COMPARED else VARIANTS[name].make(setup)


def is_reduced(name: str) -> bool:
    """Whether a variant belongs in the table of reduced precision; a module:class does not."""
    return name in VARIANTS and VARIANTS[name].reduced


def chosen(peers: list[str] | None, device: str) -> list[str]:
    """Names of the variants for a device: all, or Varve's and the peers whose names start with one of `peers`."""
    names = [name for name, variant in VARIANTS.items() if device in variant.devices]
    if peers is not None:
        names = [name for name in names if name.startswith((OURS, *peers))] + [name for name in peers if ":" in name]
    return names
