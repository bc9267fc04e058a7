"""The variants that are compared, by name, in the order in which they are dropped last to first when time is short.

sentence-transformers' ONNX and OpenVINO backends need optimum, which can't be installed beside the locked transformers
(optimum-onnx 0.1 wants < 4.58, optimum-intel 2.2 < 5.6). Here the engines stand in the place of the torch model inside
sentence-transformers, which is what those backends do.
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

# glibc gives large buffers back to the kernel after each operation unless it is told not to: 32 MB is the most that the
# threshold takes. The strongest set-up of sentence-transformers that was found on a CPU.
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
    """How a variant is made, and where it runs."""

    make: Callable[[Setup], Any]
    devices: tuple[str, ...] = BOTH
    env: Mapping[str, str] = field(default_factory=dict)


VARIANTS = {
    OURS: Variant(Varve),
    NAIVE: Variant(partial(Transformers, order="file", rows=32)),
    "sentence-transformers, 32 rows": Variant(partial(SentenceTransformers, rows=32)),
    "varve, all layers": Variant(partial(Varve, wanted="all")),
    "varve, CLS": Variant(partial(Varve, wanted="cls")),
    "varve, texts sorted": Variant(VarveSorted, CUDA),
    "varve, compiled": Variant(partial(Varve, compiled=True), CUDA),
    "sentence-transformers, 8 rows, malloc tuned": Variant(partial(SentenceTransformers, rows=8), CPU, TUNED_MALLOC),
    "openvino": Variant(partial(OpenVino, tokens=1024), CPU),
    "openvino, a batch per core": Variant(partial(OpenVino, tokens=1024, lanes=64), CPU),
    "onnxruntime": Variant(partial(OnnxRuntime, tokens=1024), CPU),
    "onnxruntime, a batch per core": Variant(partial(OnnxRuntime, tokens=1024, lanes=64), CPU),
    "ctranslate2": Variant(partial(CTranslate2, tokens=1024, lanes=64), CPU),
    "varve, layers <= half": Variant(partial(Varve, wanted="half")),
    "varve, layers <= 1": Variant(partial(Varve, wanted="first")),
    "transformers, sorted": Variant(partial(Transformers, rows=32)),
    "sentence-transformers, 8 rows": Variant(partial(SentenceTransformers, rows=8), CPU),
    "sentence-transformers, 256 rows": Variant(partial(SentenceTransformers, rows=256), CUDA),
    "sentence-transformers, onnxruntime": Variant(partial(SentenceTransformers, rows=8, engine=OnnxRuntime), CPU),
    "sentence-transformers, openvino": Variant(partial(SentenceTransformers, rows=8, engine=OpenVino), CPU),
    "fastembed": Variant(partial(FastEmbed, rows=8), CPU),
}
# Not compared, but run beside the others.
FLOOR = "floor"
REFERENCE = "reference"
_APART = {FLOOR: Floor, REFERENCE: Reference}


def make(name: str, setup: Setup) -> Any:
    """A variant, loaded; a name with a colon is module:class."""
    if ":" in name:
        module, _, found = name.partition(":")
        return getattr(import_module(module), found)(setup)
    return _APART[name](setup) if name in _APART else VARIANTS[name].make(setup)


def chosen(peers: list[str] | None, device: str) -> list[str]:
    """The names of those that run on a device: all, or ours and the peers that begin with one of these words."""
    names = [name for name, variant in VARIANTS.items() if device in variant.devices]
    if peers is not None:
        names = [name for name in names if name.startswith((OURS, *peers))] + [name for name in peers if ":" in name]
    return names
