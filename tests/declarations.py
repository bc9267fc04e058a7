"""Reads the declarations of checkpoints in tests, and writes the small files of checkpoints without an encoder."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from varve.encoder.checkpoint.declared_vectors import DeclaredVectors, read_declared_vectors


def read(folder: Path | str, role: str = "none", prompt: str | None = None) -> DeclaredVectors:
    return read_declared_vectors(Path(folder), "the-model", role, prompt=prompt)


def declaration(folder: Path | str, role: str = "none", prompt: str | None = None) -> Any:
    found = read(folder, role, prompt)
    assert found.problem is None
    return found.declaration


def problem(folder: Path | str, role: str = "none") -> str:
    found = read(folder, role)
    assert found.declaration is None
    assert found.problem is not None
    assert found.problem.startswith("model.name: ")
    return found.problem


def write_modules(folder: Path, *modules: tuple[str, dict[str, Any] | None], **settings) -> Path:
    """Write the small files of a Transformer and other modules, (name, content of config.json); Dense has weights."""
    entries = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for place, (kind, config) in enumerate(modules, 1):
        path = f"{place}_{kind}"
        entries.append({"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir()
        if config is not None:
            (folder / path / "config.json").write_text(json.dumps(config))
        if kind == "Dense":
            weights = {"linear.weight": torch.zeros(16, 32), "linear.bias": torch.zeros(16)}
            save_file(weights, folder / path / "model.safetensors")
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


def change(file: Path, **values) -> None:
    """Change keys of a JSON object; a key with the value `...` is removed."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
