"""Converts a model once to the files of other engines, in its folder: ONNX, OpenVINO, CTranslate2.

The ONNX graph has the inputs input_ids and attention_mask (padded) and the outputs last_hidden_state and its mean. ONNX
Runtime's optimizer for BERT fuses its attention, GELU and layer norms.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.machine import describe_cpu

FILES = {
    "onnx": "model.onnx",
    "onnx-optimized": "model.onnx",
    "onnx-int8": "model.onnx",
    "openvino": "model.xml",
    "ctranslate2": "model.bin",
}


def exported(folder: str, kind: str) -> Path:
    """The file of a model for one of FILES, converted in another process if it does not exist.

    Raises:
        ImportError: the conversion failed, for instance because a package is missing.
    """
    file = Path(folder) / kind / FILES[kind]
    if not file.exists():
        command = [sys.executable, "-m", "tests.bench.export", folder, kind]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            msg = f"cannot convert the model to {kind}: {done.stderr.strip().splitlines()[-1]}"
            raise ImportError(msg)
    return file


def _write_onnx(folder: Path, to: Path) -> None:
    """The graph as torch exports it."""
    import torch

    model, example = _traced(folder)
    axes = {0: "rows", 1: "tokens"}
    torch.onnx.export(
        model,
        tuple(example.values()),
        str(to),
        dynamo=False,
        opset_version=17,
        input_names=list(example),
        output_names=["last_hidden_state", "mean"],
        dynamic_axes={**dict.fromkeys(example, axes), "last_hidden_state": axes, "mean": {0: "rows"}},
    )


def _write_optimized(folder: Path, to: Path) -> None:
    """The graph after ONNX Runtime's optimizer."""
    from onnxruntime.transformers import optimizer

    config = json.loads((folder / "config.json").read_text())
    source = exported(str(folder), "onnx")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    optimized = optimizer.optimize_model(str(source), model_type="bert", num_heads=heads, hidden_size=hidden)
    optimized.save_model_to_file(str(to))


def _write_int8(folder: Path, to: Path) -> None:
    """The optimized graph with int8 weights per output; inputs are rounded at run time, per tensor.

    Without VNNI, ONNX Runtime adds pairs of products in 16 bits, so its documentation says that weights get 7 bits.
    """
    from onnx import TensorProto
    from onnxruntime.quantization import quantize_dynamic

    source = exported(str(folder), "onnx-optimized")
    # Outputs of the fused operators have no inferred type.
    float32 = {"DefaultTensorType": TensorProto.FLOAT}
    reduce_range = "vnni" not in describe_cpu()
    quantize_dynamic(source, to, per_channel=True, reduce_range=reduce_range, extra_options=float32)


def _write_openvino(folder: Path, to: Path) -> None:
    """OpenVINO's IR, converted from the torch model, in float32."""
    import openvino

    model, example = _traced(folder)
    converted = openvino.convert_model(model, example_input=example, input=[(name, [-1, -1]) for name in example])
    openvino.save_model(converted, to, compress_to_fp16=False)


def _write_ctranslate2(folder: Path, to: Path) -> None:
    """CTranslate2's format, by its converter's BERT loader."""
    from ctranslate2.converters.transformers import BertLoader
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder)
    model.config.position_embedding_type = "absolute"  # the converter reads it; new configurations lack it
    spec = BertLoader().get_model_spec(model)
    spec.config.layer_norm_epsilon = model.config.layer_norm_eps
    spec.register_vocabulary([f"[{at}]" for at in range(model.config.vocab_size)])  # only ids are passed, no words
    spec.validate()
    spec.save(str(to.parent))


def _traced(folder: Path) -> tuple[Any, dict[str, Any]]:
    """(module that returns last_hidden_state and its mean, example inputs)."""
    import torch
    from transformers import AutoModel

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
            # An additive mask: the mask code of transformers cannot be traced with variable lengths.
            scores = (1.0 - attention_mask[:, None, None].float()) * torch.finfo(torch.float32).min
            hidden = self.model(input_ids=input_ids, attention_mask=scores).last_hidden_state
            real = attention_mask[..., None].float()
            return hidden, (hidden * real).sum(1) / real.sum(1)

    ids = torch.randint(5, 1000, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return Mean().eval(), {"input_ids": ids, "attention_mask": mask}


def main(folder: str, kind: str) -> None:
    """Convert to one kind, in a draft folder that is renamed when it is complete."""
    write = {
        "onnx": _write_onnx,
        "onnx-optimized": _write_optimized,
        "onnx-int8": _write_int8,
        "openvino": _write_openvino,
        "ctranslate2": _write_ctranslate2,
    }[kind]
    draft = Path(folder) / f"{kind}.{os.getpid()}"
    draft.mkdir()
    write(Path(folder), draft / FILES[kind])
    try:
        draft.rename(Path(folder) / kind)
    except OSError:  # another process has written it
        shutil.rmtree(draft)


if __name__ == "__main__":
    main(*sys.argv[1:])
