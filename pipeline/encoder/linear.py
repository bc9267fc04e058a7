"""Linear layers as a CPU with wide vectors runs them fastest: laid out once for oneDNN, GELU inside the product.

torch's own linear layer asks MKL, which leaves a tenth of an AMD core with AVX-512 unused, and half of it when the rows
are few (infra/decisions/0013). Knows nothing of packs and threads. Invariants: float32 alone; who multiplies is a
property of the machine and is never timed, so that the same machine gives the same bits; a row's product does not
depend on the rows beside it.
"""

import ctypes
import mmap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import GELUActivation

from pipeline.encoder.layers import find_layers

# (linear layer, activation) as transformers' feed-forward blocks name them: BERT's family, DistilBERT, ALBERT.
_FEED_FORWARD = (("dense", "intermediate_act_fn"), ("lin1", "activation"), ("ffn", "activation"))


def onednn_is_faster() -> bool:
    """Whether this machine's linear layers in float32 are for oneDNN. With AVX2 alone MKL is faster."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and torch.backends.mkldnn.is_available()


def use_onednn(model: PreTrainedModel) -> None:
    """Replace every linear layer in the layers of a float32 model on the CPU; the old weights are let go one by one.

    Embeddings, pooler and head keep theirs: they see few rows, and other code looks at what they are made of.
    """
    files = _mapped_files()

    def replace(module: nn.Module, name: str, linear: nn.Linear, *, gelu: bool = False) -> None:
        setattr(module, name, OneDnnLinear(linear, gelu=gelu))
        _let_go_of_pages(linear.weight, files)

    for module in list(find_layers(model).modules()):
        for dense, activation in _FEED_FORWARD:
            linear = getattr(module, dense, None)
            if isinstance(linear, nn.Linear) and _is_exact_gelu(getattr(module, activation, None)):
                replace(module, dense, linear, gelu=True)
                setattr(module, activation, nn.Identity())
        for name, linear in list(module.named_children()):
            if type(linear) is nn.Linear:
                replace(module, name, linear)


class OneDnnLinear(nn.Module):
    """`nn.Linear` in float32 through oneDNN, with the exact GELU after it if wanted."""

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        """Lay the weight out.

        Args:
            linear: in float32, on the CPU.
            gelu: apply GELU by the error function, not its approximation by tanh.
        """
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        laid_out = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())  # noqa: SLF001 (inductor's own)
        self.laid_out = nn.Parameter(laid_out, requires_grad=False)
        self.bias = linear.bias
        self._then = ("gelu", [], "none") if gelu else ("none", [], "")

    @property
    def weight(self) -> Tensor:
        """(out, in) as `nn.Linear` has it, for code that looks at it: made anew at each look."""
        return self.laid_out.to_dense()

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        return torch.ops.mkldnn._linear_pointwise(hidden, self.laid_out, self.bias, *self._then)  # noqa: SLF001 (likewise)

    def extra_repr(self) -> str:
        """For printing, like `nn.Linear`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, then={self._then[0]}"


def _mapped_files() -> list[range]:
    """Addresses at which files are mapped into this process; none where the system does not tell."""
    maps = Path("/proc/self/maps")
    mapped = [line.split() for line in maps.read_text().splitlines()] if maps.exists() else []
    spans = [fields[0].split("-") for fields in mapped if len(fields) > 5 and fields[5].startswith("/")]
    return [range(int(first, 16), int(stop, 16)) for first, stop in spans]


def _let_go_of_pages(weight: Tensor, files: Sequence[range]) -> None:
    """Let the pages go on which a weight is mapped from the checkpoint's file, which stays mapped for other weights.

    Else they would count beside the laid-out copy. They stay in the system's cache, for the next process.
    """
    page = mmap.PAGESIZE
    first, stop = -(-weight.data_ptr() // page) * page, (weight.data_ptr() + weight.nbytes) // page * page
    if stop > first and any(first in file and stop - 1 in file for file in files):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(stop - first), mmap.MADV_DONTNEED)


def _is_exact_gelu(activation: object) -> bool:
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return type(activation) is GELUActivation and activation.act is nn.functional.gelu
