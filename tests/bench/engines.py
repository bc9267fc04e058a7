"""Peers with another engine than torch: ONNX Runtime, OpenVINO, CTranslate2, FastEmbed.

Each runs over texts sorted by length: one batch at a time on all cores, or several (`lanes`) that share the cores. The
precision is float32 unless a parameter says otherwise. FastEmbed needs huggingface-hub < 2, which conflicts with the
lock, so it runs in another environment: --python fastembed=PATH (see CONTRIBUTING.md).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.export import exported
from tests.bench.peers import Rows, Setup, padded

Vectors = NDArray[np.float32]


class Engine(Rows):
    """Base of engines that run a graph over padded arrays; `lanes` batches at the same time share the cores."""

    def __init__(self, setup: Setup, *, lanes: int = 1, **batch: int) -> None:
        super().__init__(setup, **batch)
        self.lanes = min(lanes, setup.threads)

    def run(self, ids: list[list[int]]) -> Any:
        return self.mean(*padded(ids))

    def mean(self, input_ids: NDArray, mask: NDArray) -> Vectors:
        """Means of padded rows, (R, H)."""
        raise NotImplementedError

    def hidden(self, input_ids: NDArray, mask: NDArray) -> Vectors:
        """Hidden states of padded rows, (R, T, H)."""
        raise NotImplementedError


class OnnxRuntime(Engine):
    """ONNX Runtime with the graph fused by its own optimizer; `kind` is one of tests.bench.export.FILES."""

    packages = ("onnxruntime",)

    def __init__(self, setup: Setup, *, kind: str = "onnx-optimized", **options: int) -> None:
        import onnxruntime

        super().__init__(setup, **options)
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = max(1, setup.threads // self.lanes)
        file = str(exported(setup.folder, kind))
        self._session = onnxruntime.InferenceSession(file, session_options, providers=["CPUExecutionProvider"])

    def mean(self, input_ids: NDArray, mask: NDArray) -> Vectors:
        return self._session.run(["mean"], {"input_ids": input_ids, "attention_mask": mask})[0]

    def hidden(self, input_ids: NDArray, mask: NDArray) -> Vectors:
        return self._session.run(["last_hidden_state"], {"input_ids": input_ids, "attention_mask": mask})[0]


class OpenVino(Engine):
    """OpenVINO with one stream per lane; `as_it_comes` leaves the precision to it: bfloat16 where the CPU has it."""

    packages = ("openvino",)

    def __init__(self, setup: Setup, *, as_it_comes: bool = False, **options: int) -> None:
        import openvino
        from openvino import properties

        super().__init__(setup, **options)
        config = {
            properties.inference_num_threads: setup.threads,
            properties.num_streams: self.lanes,
        }
        if not as_it_comes:
            config[properties.hint.inference_precision] = openvino.Type.f32
        self._model = openvino.compile_model(str(exported(setup.folder, "openvino")), "CPU", config)
        precision = self._model.get_property(properties.hint.inference_precision)
        self.ways = {"precision": precision.get_type_name()}

    def _infer(self, output: int, input_ids: NDArray, mask: NDArray) -> Vectors:
        # A request must stay in one thread, and each run has new threads.
        request = self._model.create_infer_request()
        return request.infer({"input_ids": input_ids, "attention_mask": mask})[output]

    def mean(self, input_ids: NDArray, mask: NDArray) -> Vectors:
        return self._infer(1, input_ids, mask)

    def hidden(self, input_ids: NDArray, mask: NDArray) -> Vectors:
        return self._infer(0, input_ids, mask)


class CTranslate2(Rows):
    """CTranslate2, one batch per core; in int8 it rounds the weights by output and the inputs by token."""

    packages = ("ctranslate2",)

    def __init__(self, setup: Setup, *, lanes: int, compute_type: str = "float32", **batch: int) -> None:
        import ctranslate2

        super().__init__(setup, **batch)
        self.lanes = min(lanes, setup.threads)
        threads = {"inter_threads": self.lanes, "intra_threads": max(1, setup.threads // self.lanes)}
        folder = str(exported(setup.folder, "ctranslate2").parent)
        self._encoder = ctranslate2.Encoder(folder, device="cpu", compute_type=compute_type, **threads)

    def run(self, ids: list[list[int]]) -> Vectors:
        hidden = np.asarray(self._encoder.forward_batch(ids).last_hidden_state)
        mask = padded(ids)[1][..., None]
        return np.where(mask, hidden, 0).sum(1) / mask.sum(1)


class FastEmbed:
    """FastEmbed with the model registered as a custom one; texts are sorted by characters.

    Its quantized models are graphs of `onnxruntime.quantization.quantize_dynamic`, as the kind "onnx-int8" is.
    """

    packages = ("fastembed", "onnxruntime")
    layers = (-1,)
    takes_tokens = False

    def __init__(self, setup: Setup, *, rows: int, kind: str = "onnx") -> None:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType
        from tokenizers import Tokenizer

        folder = Path(setup.folder)
        export_folder = exported(setup.folder, kind).parent
        config = json.loads((folder / "config.json").read_text())
        # FastEmbed reads the limit from tokenizer_config.json, and the special tokens from a file that transformers no
        # longer writes.
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.save(str(export_folder / "tokenizer.json"))
        special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
        limits = {"model_max_length": setup.max_tokens, "max_length": setup.max_tokens, "pad_token": "[PAD]"}
        for name, content in {
            "config.json": config,
            "special_tokens_map.json": special,
            "tokenizer_config.json": special | limits,
        }.items():
            (export_folder / name).write_text(json.dumps(content))
        TextEmbedding.add_custom_model(
            model="bench/model",
            pooling=PoolingType.MEAN,
            normalization=False,
            sources=ModelSource(hf="bench/model"),
            dim=config["hidden_size"],
            model_file="model.onnx",
        )
        self._rows = rows
        self._model = TextEmbedding("bench/model", specific_model_path=str(export_folder), threads=setup.threads)

    def tokenize(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def encode(self, texts: Sequence[str]) -> Any:
        order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
        vectors = np.stack(list(self._model.embed([texts[at] for at in order], batch_size=self._rows)))
        return vectors[np.argsort(order)]
