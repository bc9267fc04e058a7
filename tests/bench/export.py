"""A model's folder → the files that other engines run, made once beside it: ONNX, OpenVINO, CTranslate2.

The ONNX graph takes padded input_ids and attention_mask and gives last_hidden_state and its mean; ONNX Runtime's own
optimizer for BERT (fused attention, GELU, layer norms) is run over it.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def onnx_file(folder: str) -> Path:
    """ONNX, optimized for ONNX Runtime."""
    return _once(Path(folder) / "onnx-optimized" / "model.onnx", lambda to: _optimize(plain_onnx_file(folder), to))


def plain_onnx_file(folder: str) -> Path:
    """ONNX as torch exports it."""

    def write(to: Path) -> None:
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

    return _once(Path(folder) / "onnx" / "model.onnx", write)


def openvino_file(folder: str) -> Path:
    """OpenVINO's IR, converted from the torch model, in float32."""

    def write(to: Path) -> None:
        import openvino

        model, example = _traced(folder)
        converted = openvino.convert_model(model, example_input=example, input=[(name, [-1, -1]) for name in example])
        openvino.save_model(converted, to, compress_to_fp16=False)

    return _once(Path(folder) / "openvino" / "model.xml", write)


def ctranslate2_folder(folder: str) -> Path:
    """CTranslate2's format, by its converter's BERT loader."""

    def write(to: Path) -> None:
        from ctranslate2.converters.transformers import BertLoader
        from transformers import AutoModel

        model = AutoModel.from_pretrained(folder)
        model.config.position_embedding_type = "absolute"  # the converter asks; newer configurations no longer say
        loader = BertLoader()
        spec = loader.get_model_spec(model)
        spec.config.layer_norm_epsilon = model.config.layer_norm_eps
        spec.register_vocabulary([f"[{at}]" for at in range(model.config.vocab_size)])  # ids are passed, never words
        spec.validate()
        to.parent.mkdir(exist_ok=True)
        spec.save(str(to.parent))

    return _once(Path(folder) / "ctranslate2" / "model.bin", write).parent


def _once(file: Path, write: Callable[[Path], None]) -> Path:
    """Write a file by way of a folder that is named when it is whole."""
    if not file.exists():
        draft = file.parent.with_suffix(f".{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        write(draft / file.name)
        draft.rename(file.parent)
    return file


def _traced(folder: str) -> tuple[Any, dict[str, Any]]:
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


def _optimize(source: Path, to: Path) -> None:
    from onnxruntime.transformers import optimizer

    config = json.loads((source.parents[1] / "config.json").read_text())
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    optimized = optimizer.optimize_model(str(source), model_type="bert", num_heads=heads, hidden_size=hidden)
    optimized.save_model_to_file(str(to))
