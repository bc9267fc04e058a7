"""How an encoder runs, as the manifest and the estimate of a job record it."""

from typing import Any

import torch

from varve.encoder.encoder import Encoder
from varve.encoder.kernels.gpu_support import find_triton_kernels


def describe(encoder: Encoder) -> dict[str, Any]:
    """The device, precision, layout and kernels of an encoder. The keys are part of the manifest's format."""
    on_cpu = encoder.device.type == "cpu"
    kernels = "triton" if not on_cpu and find_triton_kernels() else "torch"
    return {
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(encoder.device),
        "dtype": encoder.dtype,
        "layout": encoder.layout,
        "layout_reason": encoder.layout_reason,
        "attention": encoder.attention,
        "linear": encoder.linear,
        "top_layer": encoder.top_layer,
        "tokens_per_pack": encoder.tokens_per_pack,
        **({"threads": encoder.threads} if on_cpu else {"most_tokens": encoder.max_pack_tokens, "kernels": kernels}),
        "compiled": encoder.compiled,
        "tokenizer": encoder.tokenizer.description,
    }
