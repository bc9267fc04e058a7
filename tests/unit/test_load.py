"""What a checkpoint must be to be taken."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from pipeline.encoder.encoder import Encoder
from pipeline.errors import JobError
from pipeline.spec.feature import Feature
from tests.models import ARCHITECTURES


def test_model_whose_batches_differ_from_single_texts_is_refused(tiny, monkeypatch):
    from pipeline.encoder import gate

    monkeypatch.setattr(gate, "TOLERANCE", 0.0)  # nothing is exact enough: what a wrong model looks like to the gate
    with pytest.raises(JobError, match="differs from one text at a time"):
        Encoder(tiny("deberta-v2"), {"m": Feature(pool="mean")}, device="cpu")


def test_hub_id_is_fetched_at_the_commit_that_it_is_pinned_to(tiny, monkeypatch):
    """Only the Hub is a stand-in: it answers with a commit, and the files must be asked for at that commit."""
    from types import SimpleNamespace

    from pipeline.encoder import checkpoint as looked_at

    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, "*.bin" in allow_patterns))
        return tiny("bert")

    monkeypatch.setattr(
        looked_at, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    )
    monkeypatch.setattr(looked_at, "snapshot_download", download)
    checkpoint = looked_at.look_at("someone/model", "main")
    assert checkpoint.commit == "c0ffee"
    assert asked == [("someone/model", "c0ffee", False)]


def test_checkpoint_without_safetensors_is_refused(tiny, tmp_path):
    import shutil
    from pathlib import Path

    folder = tmp_path / "pickled"
    shutil.copytree(tiny("bert"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, Path(folder) / "pytorch_model.bin")
    with pytest.raises(JobError, match="no safetensors weights"):
        Encoder(str(folder), {"m": Feature(pool="mean")}, device="cpu")


def test_checkpoint_with_missing_weights_is_refused(tiny, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "torn"
    shutil.copytree(tiny("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match="they would be random"):
        Encoder(str(folder), {"m": Feature(pool="mean")}, device="cpu")


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "camembert"])
def test_what_is_known_of_an_architecture_is_what_its_code_says(architecture, tiny, tmp_path, monkeypatch):
    from pipeline.encoder import checkpoint as looked_at

    if architecture == "camembert":
        config = AutoConfig.for_model("camembert", **ARCHITECTURES["roberta"])
        AutoModel.from_config(config).save_pretrained(tmp_path)
        folder = str(tmp_path)
    else:
        folder = tiny(architecture)
    by_what_is_known = looked_at.look_at(folder)
    monkeypatch.setattr(looked_at, "_KNOWN", {})
    assert looked_at.look_at(folder) == by_what_is_known
