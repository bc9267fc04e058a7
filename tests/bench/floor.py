"""The floor: the least time of a model's matrix products on this machine, a lower bound for every encoder.

Counted are the products of unpadded tokens: four of hidden x hidden and two of hidden x intermediate per token and
layer, and the two of attention. On a CPU each core runs its own stream of products without barriers; on CUDA there is
one stream. The rate is measured with the model's shapes, at the best number of tokens and with the best
implementation: torch's linear layer, `addmm`, and on a CPU oneDNN and Varve's kernels with packed weights.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from tests.bench.peers import Setup

CPU_TOKENS = (256, 512, 1024, 2048)
CUDA_TOKENS = (8192, 16384, 32768, 65536, 131072)
CUBE = 8192  # size of the product that shows the device's peak rate
_SECONDS = 0.4


def flops(shape: Any, lengths: Sequence[int]) -> int:
    """Floating point operations of all matrix products, for texts of these lengths in tokens."""
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    dense = (8 * hidden**2 + 4 * hidden * shape.intermediate_size) * sum(lengths)
    return layers * (dense + 4 * hidden * sum(length**2 for length in lengths))


class Floor:
    """Measures the rate of a model's matrix products."""

    packages = ("torch",)

    def __init__(self, setup: Setup) -> None:
        import torch
        from transformers import AutoConfig

        torch.set_num_threads(1)
        self._shape = AutoConfig.from_pretrained(setup.folder)
        self._device, self._threads = setup.device, setup.threads if setup.device == "cpu" else 1
        self._streams = ThreadPoolExecutor(self._threads)
        barrier = Barrier(self._threads)

        def use_one_thread(_: int) -> None:
            torch.set_num_threads(1)
            barrier.wait()

        list(self._streams.map(use_one_thread, range(self._threads)))

    def measure(self) -> dict[str, float]:
        """ "TOKENS tokens, IMPLEMENTATION" → operations per second of all streams."""
        from varve.encoder.kernels.cpu_library import find_cpu_library

        cuda = self._device == "cuda"
        on_cpu = ["linear", "addmm", "onednn", *(["compiled"] if find_cpu_library() else [])]
        rates = {
            f"{tokens:,} tokens, {call}": self._rate(self._products(tokens, call))
            for tokens in (CUDA_TOKENS if cuda else CPU_TOKENS)
            for call in (["linear", "addmm"] if cuda else on_cpu)
        }
        return rates | ({f"{CUBE} cubed": self._rate(self._cube)} if cuda else {})

    def _products(self, tokens: int, call: str) -> Callable[[], tuple[Callable[[], None], float]]:
        def make() -> tuple[Callable[[], None], float]:
            import torch
            from torch import nn

            h, f = self._shape.hidden_size, self._shape.intermediate_size
            kind = {"device": self._device, "dtype": torch.float16 if self._device == "cuda" else torch.float32}
            layers = [nn.Linear(i, o, **kind) for i, o in [(h, h)] * 4 + [(h, f), (f, h)]]
            inputs = [torch.randn(tokens, layer.in_features, **kind) for layer in layers]
            implementations = {"linear": list, "addmm": _addmm, "onednn": _onednn, "compiled": _compiled}
            products = list(zip(implementations[call](layers), inputs, strict=True))

            def run() -> None:
                for multiply, hidden in products:
                    multiply(hidden)

            return run, (8 * h * h + 4 * h * f) * tokens

        return make

    def _cube(self) -> tuple[Callable[[], None], float]:
        import torch

        a, b = (torch.randn(CUBE, CUBE, device="cuda", dtype=torch.float16) for _ in range(2))

        def product() -> None:
            torch.mm(a, b)

        return product, 2 * CUBE**3

    def _rate(self, make: Callable[[], tuple[Callable[[], None], float]]) -> float:
        work = [make() for _ in range(self._threads)]
        return sum(self._streams.map(lambda each: self._stream(*each), work))

    def _stream(self, run: Callable[[], None], operations: float) -> float:
        import torch

        with torch.inference_mode():
            run()
            self._synchronize()
            times, started = 0, time.perf_counter()
            while (time.perf_counter() - started) < _SECONDS:
                # Rare synchronization, so that the device is never idle.
                for _ in range(1 if self._device == "cpu" else 20):
                    run()
                    times += 1
                self._synchronize()
            return operations * times / (time.perf_counter() - started)

    def _synchronize(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()


def _addmm(layers: Sequence[Any]) -> list[Callable[[Any], Any]]:
    import torch

    transposed = [(layer.weight.t(), layer.bias) for layer in layers]
    return [lambda x, w=w, b=b: torch.addmm(b, x, w) for w, b in transposed]


def _onednn(layers: Sequence[Any]) -> list[Callable[[Any], Any]]:
    """The operators that torch.compile uses on a CPU; they are not public."""
    import torch

    ops = torch.ops.mkldnn
    packed = [(ops._reorder_linear_weight(layer.weight.detach()), layer.bias) for layer in layers]  # noqa: SLF001
    return [lambda x, w=w, b=b: ops._linear_pointwise(x, w, b, "none", [], "") for w, b in packed]  # noqa: SLF001


def _compiled(layers: Sequence[Any]) -> list[Callable[[Any], Any]]:
    """The kernels of the encoder."""
    from varve.encoder.kernels.cpu_library import find_cpu_library
    from varve.encoder.kernels.cpu_weights import WeightArena
    from varve.encoder.model.fused_linear import Linear

    kernel = find_cpu_library()
    assert kernel is not None
    return [Linear(layer, kernel, WeightArena(layer.weight.numel(), [])) for layer in layers]
