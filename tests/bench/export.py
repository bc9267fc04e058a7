"""A model's folder → the files that other engines run, made once beside it: ONNX, OpenVINO, CTranslate2.

The ONNX graph takes padded input_ids and attention_mask and gives last_hidden_state and its mean; ONNX Runtime's own
optimizer for BERT (fused attention, GELU, layer norms) is run over it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

FILES = {"onnx": "model.onnx", "onnx-optimized": "model.onnx", "openvino": "model.xml", "ctranslate2": "model.bin"}


def exported(folder: str, kind: str) -> Path:
    """The file of a model in one of the kinds of FILES, made in another process if it is not there yet.

    Raises:
        ImportError: what makes it is not installed.
    """
    file = Path(folder) / kind / FILES[kind]
    if not file.exists():
        command = [sys.executable, "-m", "tests.bench.export", folder, kind]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            msg = f"no {kind} of the model: {told.stderr.strip().splitlines()[-1]}"
            raise ImportError(msg)
    return file


def _write_onnx(folder: Path, to: Path) -> None:
    """As torch exports it."""
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
    """As ONNX Runtime's optimizer leaves it."""
    from onnxruntime.transformers import optimizer

    config = json.loads((folder / "config.json").read_text())
    source = exported(str(folder), "onnx")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    optimized = optimizer.optimize_model(str(source), model_type="bert", num_heads=heads, hidden_size=hidden)
    optimized.save_model_to_file(str(to))


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
    model.config.position_embedding_type = "absolute"  # the converter asks; newer configurations no longer say
    spec = BertLoader().get_model_spec(model)
    spec.config.layer_norm_epsilon = model.config.layer_norm_eps
    spec.register_vocabulary([f"[{at}]" for at in range(model.config.vocab_size)])  # ids are passed, never words
    spec.validate()
    spec.save(str(to.parent))


def _traced(folder: Path) -> tuple[Any, dict[str, Any]]:
    """(a module that gives last_hidden_state and its mean, example inputs)."""
    import torch
    from transformers import AutoModel

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
            # A mask of scores made here: the library's own mask code does not trace with free lengths.
            scores = (1.0 - attention_mask[:, None, None].float()) * torch.finfo(torch.float32).min
            hidden = self.model(input_ids=input_ids, attention_mask=scores).last_hidden_state
            real = attention_mask[..., None].float()
            return hidden, (hidden * real).sum(1) / real.sum(1)

    ids = torch.randint(5, 1000, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return Mean().eval(), {"input_ids": ids, "attention_mask": mask}


def main(folder: str, kind: str) -> None:
    """Write one kind, by way of a folder that is named when it is whole."""
    write = {
        "onnx": _write_onnx,
        "onnx-optimized": _write_optimized,
        "openvino": _write_openvino,
        "ctranslate2": _write_ctranslate2,
    }[kind]
    draft = Path(folder) / f"{kind}.{os.getpid()}"
    draft.mkdir()
    write(Path(folder), draft / FILES[kind])
    try:
        draft.rename(Path(folder) / kind)
    except OSError:  # another process was first
        shutil.rmtree(draft)


if __name__ == "__main__":
    main(*sys.argv[1:])
