"""A trained probe as files: safetensors, JSON and ONNX.

    model.safetensors   the head's tensors
    model.json          features, hand-crafted columns, classes, versions, and the run that it was trained on
    model.onnx          the head as a graph, if `onnx` is installed

Knows nothing of training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_safetensors

from varve.encoder.feature_plan import Column
from varve.errors import JobError, one_line
from varve.output.json_text import parse_object
from varve.output.run_output import PROVENANCE_KEYS, Output
from varve.output.schema import describe, parse_columns
from varve.pages.html_table import html_table
from varve.probe.data.handcrafted import HandCrafted, encode
from varve.probe.models.head import Head, Shape
from varve.probe.onnx_graph import make_graph

_FORMAT = 1
JSON_NAME, TENSORS_NAME, ONNX_NAME = "model.json", "model.safetensors", "model.onnx"
# What must be equal in the run that a probe was trained on and in a run that it predicts for.
_SAME = ("revision", "weights_sha256", "tokenizer_sha256", "max_tokens", "long_text")
_SAME_IF_RECORDED = ("role", "prompt", "heads_sha256")  # runs without prompts and heads do not record them
_FURTHER = "further"  # runs of features that are in other feature sets than the first one
_SAME_COLUMN = ("pool", "layers", "combine", "normalize", "width")


@dataclass(frozen=True)
class Probe:
    """A trained probe.

    >>> probe = Probe.load("probe/model")
    >>> probabilities = probe({"cls_06": vectors, "n_words": [12, 3]})  # (N, classes) float32
    >>> [probe.classes[best] for best in probabilities.argmax(axis=1)]
    """

    head: Head
    features: tuple[Column, ...]
    handcrafted: tuple[HandCrafted, ...]
    classes: tuple[str, ...]  # empty for numbers
    label: str
    run: dict[str, Any]  # model, revision, weights_sha256, ..., fingerprint
    record: dict[str, Any]  # metrics, seed and hyperparameters

    def __call__(self, columns: pa.Table | Mapping[str, Any]) -> NDArray[np.float32]:
        """Predict.

        Args:
            columns: by name, the vectors (N, width) of each feature as float32, and the N values of each hand-crafted
                column. An `Encoder` computes the vectors of texts.

        Returns:
            (N, classes) probabilities, or (N,) numbers.

        Raises:
            JobError: a column is missing or has another width.
        """
        handcrafted = [encode(self.handcrafted, columns)] if self.handcrafted else []
        scores = self.head.scores(np.hstack([*self._vectors(columns), *handcrafted]))
        return scores if self.classes else scores[:, 0]

    def _vectors(self, columns: pa.Table | Mapping[str, Any]) -> list[NDArray[np.float32]]:
        vectors = []
        for column in self.features:
            if column.name not in columns:
                msg = f"the feature {column.name!r} is missing: expected {', '.join(f.name for f in self.features)}"
                raise JobError(msg)
            values = np.asarray(columns[column.name], np.float32)
            if values.ndim != 2 or values.shape[1] != column.width:
                msg = f"{column.name}: its shape is {values.shape}, expected (N, {column.width})"
                raise JobError(msg)
            vectors.append(values)
        return vectors

    def _repr_html_(self) -> str:
        inputs = ", ".join([*(column.name for column in self.features), *self.handcrafted_names])
        rows = [
            ("predicts", ", ".join(self.classes) or "a number"),
            ("from", inputs),
            ("model", self.run.get("model")),
            ("shape", asdict(self.head.shape)),
            *((name, value) for name, value in self.record.items() if not isinstance(value, list)),
        ]
        return html_table(f"Probe of {self.label}", ("", ""), rows)

    def save(self, folder: Path) -> None:
        """Write all files of the probe; `model.onnx` only if `onnx` is installed."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TENSORS_NAME).write_bytes(to_safetensors(self.head.state()))
        (folder / JSON_NAME).write_text(json.dumps(self.to_json(), indent=1) + "\n", "utf-8")
        (folder / ONNX_NAME).unlink(missing_ok=True)
        if (graph := self.to_onnx()) is not None:
            (folder / ONNX_NAME).write_bytes(graph)

    def to_json(self) -> dict[str, Any]:
        """The content of model.json."""
        return {
            "format": _FORMAT,
            "varve": version("varve"),
            "label": self.label,
            "classes": list(self.classes),
            "features": [describe(column) for column in self.features],
            "handcrafted": [asdict(column) for column in self.handcrafted],
            "inputs": [*(column.name for column in self.features), *self.handcrafted_names],
            "shape": asdict(self.head.shape),
            "run": self.run,
            **self.record,
        }

    @property
    def handcrafted_names(self) -> list[str]:
        """Names of the encoded hand-crafted columns, in the order of the inputs."""
        return [name for column in self.handcrafted for name in column.names]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Load a saved probe.

        Args:
            folder: with its files, or the --output of `varve probe`.

        Raises:
            JobError: the folder holds no probe, or another version of Varve wrote it.
        """
        path = Path(folder) if (Path(folder) / JSON_NAME).exists() else Path(folder) / "model"
        try:
            content = parse_object((path / JSON_NAME).read_bytes())
            saved = _SAVED.validate_python(content)
            state = load_file(path / TENSORS_NAME)
            features = tuple(parse_columns(saved.features))
            _check_shape(saved, features, state)
            head = Head.from_state(saved.shape, state)
        except OSError as e:
            msg = f"{folder} holds no probe: expected the folder with {JSON_NAME} and {TENSORS_NAME}"
            raise JobError(msg) from e
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
            msg = f"{path} cannot be read by this version of Varve: {type(e).__name__} {one_line(e)}"
            raise JobError(msg) from e
        known = {"format", "varve", "label", "classes", "features", "handcrafted", "inputs", "shape", "run"}
        record = {key: value for key, value in content.items() if key not in known}
        return cls(head, features, saved.handcrafted, saved.classes, saved.label, saved.run, record)

    def check_run(self, output: Output) -> None:
        """Check that the vectors of an output have the same meaning as the vectors that the probe was trained on.

        Raises:
            JobError: with all differences.
        """
        trained, given = self.run, describe_run(output, self.features)
        differences = _differences(trained, given)
        for column in self.features:
            here = [run.get(_FURTHER, {}).get(column.name, run) for run in (trained, given)]
            differences += _differences(*here) if here != [trained, given] else []
            other = output.features.get(column.name)
            if other is None:
                differences.append(f"{column.name}: missing (the run has {', '.join(output.features)})")
                continue
            # Binary vectors are -1 or 1; other dtypes hold the same values with different precision.
            keys = (*_SAME_COLUMN, "dtype") if "binary" in {column.dtype, other.dtype} else _SAME_COLUMN
            differences += [
                f"{column.name}, {key}: {_format(column, key)} → {_format(other, key)}"
                for key in keys
                if getattr(column, key) != getattr(other, key)
            ]
        if differences:
            listed = "".join(f"\n  {difference}" for difference in differences)
            msg = f"{output.storage.uri} does not have the features that the probe was trained on:{listed}"
            raise JobError(msg)

    def to_onnx(self) -> bytes | None:
        """The head as an ONNX graph; None without the package `onnx`.

        Inputs: the features by name, (N, width) float32 each, and `handcrafted`, (N, K) float32, which is the result of
        `handcrafted.encode`. Output: `probabilities` (N, classes), or `value` (N, 1).
        """
        try:
            return make_graph(self.head, self.features, self.handcrafted_names)
        except ModuleNotFoundError:
            return None


@dataclass(frozen=True, slots=True)
class _Saved:
    """The fields of model.json that a probe is made of."""

    shape: Shape
    features: list[dict[str, Any]]
    handcrafted: tuple[HandCrafted, ...]
    classes: tuple[str, ...]
    label: str
    run: dict[str, Any]


_SAVED = TypeAdapter(_Saved)


def _check_shape(saved: _Saved, features: Sequence[Column], state: Mapping[str, NDArray]) -> None:
    """Check that the tensors are those of the head, before memory for a head of this shape is reserved.

    Raises:
        ValueError, KeyError: they are not, or the inputs and outputs are not listed in model.json.
    """
    shape = saved.shape
    inner = shape.vector_width // max(1, shape.mixed_layers)
    sizes = [inner + shape.handcrafted_width, *shape.hidden, shape.outputs]
    layers = sorted((name for name in state if name.startswith("body.")), key=lambda name: int(name.split(".")[1]))
    weights = [state[name].shape for name in layers if name.endswith(".weight")]
    widths = {
        "weights": (weights, [(units, inputs) for inputs, units in pairwise(sizes)]),
        "mean": (state["mean"].shape, (shape.vector_width,)),
        "features": (sum(column.width for column in features), shape.vector_width),
        "handcrafted": (sum(len(column.names) for column in saved.handcrafted), shape.handcrafted_width),
        "classes": (max(1, len(saved.classes)), shape.outputs),
        "run": ({*_SAME, "model"} <= saved.run.keys(), True),
    }
    for name, (found, expected) in widths.items():
        if found != expected:
            msg = f"{name}: {found} does not fit {expected}"
            raise ValueError(msg)


def _differences(trained: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What differs in the meaning of the vectors of two runs."""
    keys = [key for key in (*_SAME, *_SAME_IF_RECORDED) if trained.get(key) != given.get(key)]
    return [f"{key}: {trained.get(key)} → {given.get(key)}" for key in (*(["model"] if keys else []), *keys)]


def _format(column: Column, key: str) -> object:
    value = getattr(column, key)
    return "/".join(map(str, value)) if isinstance(value, tuple) else value


def describe_run(output: Output, columns: Sequence[Column] = ()) -> dict[str, Any]:
    """All that decides the meaning of a run's vectors, and the run's fingerprint.

    Args:
        output: of the run.
        columns: the features that are meant. If they are in several feature sets, the set of the first one is
            described, and below "further" the set of each other column that is not in it.
    """
    runs = {column.name: _describe(output.led_by(column.name)) for column in columns}
    first = next(iter(runs.values()), None) or _describe(output)
    further = {name: run for name, run in runs.items() if run != first}
    return {**first, _FURTHER: further} if further else first


def _describe(output: Output) -> dict[str, Any]:
    long_text = output.manifest.job["model"].get("long_text", "truncate")
    if isinstance(long_text, dict):  # a newer key, which older runs lack
        long_text = {key: value for key, value in long_text.items() if (key, value) != ("chunk", None)}
    recorded = [*PROVENANCE_KEYS, *(key for key in _SAME_IF_RECORDED if key in output.metadata)]
    return {**{key: output.metadata[key] for key in recorded}, "long_text": long_text}
