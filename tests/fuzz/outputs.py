"""Targets: what an output holds and commands read: parts, manifest, job, history, maps, saved probes, the card."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModel

from tests.example_reports import example_history
from tests.finished_runs import finish
from tests.fuzz.checkpoints import save_tokenizer
from tests.fuzz.target import Target
from tests.models import ARCHITECTURES
from tests.outputs import column, write_output
from tests.probes import problem
from varve import Job
from varve.cli.main import run_command
from varve.cli.report_page import write_page
from varve.cli.status import read_status
from varve.errors import RunError
from varve.exploration.map.make_map import make_map
from varve.monitoring.run_history import HISTORY_FOLDER, read_histories
from varve.output.feature_sets import open as open_output
from varve.probe.predictions import predict
from varve.probe.saved_probe import Probe
from varve.storage.object_store import Storage
from varve.verification.verify import verify

_ROWS, _WIDTH, _WORDS = 40, 8, 200
_TEXTS = [f"text {row} of these" for row in range(_ROWS)]


def save_model(folder: Path) -> None:
    """A checkpoint of one layer and few words."""
    torch.manual_seed(0)
    values = ARCHITECTURES["bert"] | {"vocab_size": _WORDS, "num_hidden_layers": 1}
    AutoModel.from_config(AutoConfig.for_model("bert", **values)).save_pretrained(folder)
    save_tokenizer(folder)


def make_run(folder: Path) -> None:
    """A finished run of a tiny model, with its source and model beside it."""
    save_model(folder / "model")
    (folder / "docs").mkdir()
    pq.write_table(pa.table({"text": _TEXTS, "doc_id": range(_ROWS)}), folder / "docs/0.parquet")
    job = {
        "source": {"dataset": str(folder / "docs"), "text": "text", "keep": ["doc_id"]},
        "model": {"name": str(folder / "model"), "max_tokens": 16},
        "output": {"path": str(folder / "out"), "rows_per_part": 25},
    }
    finish(Job.parse(job))
    history = example_history(seconds=20).encode()
    (folder / "out" / HISTORY_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / "out" / HISTORY_FOLDER / "20260101T000000-1.json").write_bytes(history)


def make_output(folder: Path) -> None:
    """An output with a probe and a map of it."""
    vectors, target = problem(rows=300, width=_WIDTH)
    kept = {"label": [f"class {code}" for code in target], "text": [f"text {row}" for row in range(300)]}
    write_output(folder / "out", {column("e", _WIDTH): vectors}, kept, rows_per_part=200)
    argv = ["probe", str(folder / "out"), "--label", "label", "--text", "none", "--output", str(folder / "probe")]
    assert run_command(argv) == 0
    _map(folder, "")


def _status(folder: Path, _name: str) -> None:
    json.dumps(read_status(Storage(str(folder / "out"), patient=False)))


def _verify(folder: Path, _name: str) -> None:
    """A failed check is a refusal."""
    checks = verify(str(folder / "out"))
    json.dumps([[check.name, check.failures] for check in checks])
    if failed := [check.name for check in checks if not check.passed]:
        raise RunError(" ".join(failed))


def _read(folder: Path, _name: str) -> None:
    output = open_output(str(folder / "out"))
    for _, table in output.tables(output.schema.names):
        table.validate(full=True)


def _report(folder: Path, _name: str) -> None:
    write_page(str(folder / "out"), file=None, seed=0, color=None, price_per_hour=None)


def _history(folder: Path, _name: str) -> None:
    if not read_histories(Storage(str(folder / "out"), patient=False)):
        raise RunError("unread")  # noqa: EM101 (as the command does, without a message)


def _map(folder: Path, _name: str) -> None:
    make_map(str(folder / "out"), method="pca", neighbours=3, sample_rows=20)


def _predict(folder: Path, _name: str) -> None:
    predict(Probe.load(folder / "probe"), open_output(str(folder / "out")), "again")


_RECORDS = ("out/_varve/manifest.json", "out/_varve/job.json")
_PARTS = ("out/data/*.parquet",)
TARGETS = (
    Target("records", make_run, _RECORDS, _status, confined=True),
    Target("verified-records", make_run, _RECORDS, _verify),
    Target("parts", make_output, _PARTS, _read, confined=True),
    Target("verified-parts", make_run, _PARTS, _verify, confined=True),
    Target("report", make_run, (*_PARTS, *_RECORDS, f"out/{HISTORY_FOLDER}/*.json"), _report),
    Target("history", make_run, (f"out/{HISTORY_FOLDER}/*.json",), _history, confined=True),
    Target("map", make_output, ("out/maps/*/*.json", "out/maps/*/_layout/*.parquet", *_PARTS), _map, confined=True),
    Target("probe", make_output, ("probe/model/*.json", "probe/model/*.safetensors"), _predict, confined=True),
)
