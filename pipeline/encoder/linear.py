"""Linear layers as a CPU with wide vectors runs them fastest: laid out once for oneDNN, GELU inside the product.

torch's own linear layer asks MKL, which leaves a tenth of an AMD core with AVX-512 unused, and half of it when the rows
are few (infra/decisions/0013). Knows nothing of packs and threads. Invariants: float32 alone; who multiplies is a
property of the machine and is never timed, so that the same machine gives the same bits; a row's product does not
depend on the rows beside it.
"""

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
    """Replace every linear layer in the layers of a float32 model on the CPU; the old weights are let go.

    Embeddings, pooler and head keep theirs: they see few rows, and other code looks at what they are made of.
    """
    for module in list(find_layers(model).modules()):
        for dense, activation in _FEED_FORWARD:
            linear = getattr(module, dense, None)
            if isinstance(linear, nn.Linear) and _is_exact_gelu(getattr(module, activation, None)):
                setattr(module, dense, OneDnnLinear(linear, gelu=True))
                setattr(module, activation, nn.Identity())
        for name, linear in list(module.named_children()):
            if type(linear) is nn.Linear:
                setattr(module, name, OneDnnLinear(linear))


def let_go_of_file(model: PreTrainedModel) -> None:
    """Copy what is left of a model's weights out of the checkpoint's file.

    The file is mapped into memory as a whole until its last weight is let go, and its pages would count beside those of
    the weights that were laid out.
    """
    for parameter in model.parameters():
        if not parameter.is_mkldnn:
            parameter.data = parameter.data.clone()


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


def _is_exact_gelu(activation: object) -> bool:
    if isinstance(activation, nn.GELU):
        return activation.approximate == "none"
    return type(activation) is GELUActivation and activation.act is nn.functional.gelu
