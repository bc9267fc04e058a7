"""Dependencies point one way; the files that may talk to Ray Data, object stores and torch are few."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.source.opening import open_dataset
from pipeline.spec.source import Source

ROOT = Path(__file__).parents[2]
PIPELINE = sorted((ROOT / "pipeline").rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers(package: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in PIPELINE
        if any(name == package or name.startswith(f"{package}.") for name in imported(path))
    }


def test_only_run_imports_ray_data():
    cluster = {f"pipeline/cluster/{name}.py" for name in ("connection", "model_files", "nodes")}
    run = {f"pipeline/run/{name}.py" for name in ("bounds", "graph", "pace", "program", "reports", "shards", "tasks")}
    assert importers("ray") == {*cluster, *run, "pipeline/metrics.py", "pipeline/submission/head.py"}
    assert importers("ray.data") == run - {"pipeline/run/reports.py"}


def test_only_storage_imports_object_store_clients():
    assert importers("fsspec") | importers("obstore") | importers("pyarrow.fs") == {
        "pipeline/storage/files.py",
        "pipeline/storage/objects.py",
        "pipeline/storage/persistence.py",
    }


@pytest.mark.parametrize("package", ["ray", "pyarrow", "datasets", "fsspec", "obstore"])
def test_encoder_needs_only_torch_and_transformers(package):
    needed = {path for path in importers(package) if path.startswith("pipeline/encoder/")}
    needed |= importers(package) & {"pipeline/tokenizer.py", "pipeline/columns.py"}
    needed |= {path for path in importers(package) if path.startswith("pipeline/spec/")}
    assert needed == set()


def test_imports_follow_the_flow():
    order = [
        "errors", "quiet", "imports", "spec", "columns", "ranges", "storage", "source", "tokenizer", "code",
        "computed", "texts", "encoder", "schema", "size", "sink", "parts", "trial", "plan", "recall", "manifest",
        "recomputed", "reference", "canary", "envelope", "tally", "tell", "featurize", "estimate", "metrics",
        "progress", "stages", "quarantine", "work", "tokenize", "replica", "cluster", "forecast", "watch", "run",
        "check", "verify", "driver", "submission", "probe",
    ]  # fmt: skip
    stages = {path.stem if path.parent == ROOT / "pipeline" else path.parent.name for path in PIPELINE} - {"__init__"}
    assert stages == set(order)
    for path in PIPELINE:
        if path.name == "__init__.py":
            continue
        stage = path.stem if path.parent == ROOT / "pipeline" else path.parent.name
        used = {name.split(".")[1] for name in imported(path) if name.startswith("pipeline.")} & set(order)
        assert all(order.index(other) <= order.index(stage) for other in used), (path, used)
    assert not importers("jobs")


def test_planning_a_known_model_does_not_wait_for_the_code_of_models(minilm):
    look = "from pipeline.encoder.checkpoint import look_at, load_tokenizer"
    heavy = "sorted({'transformers.modeling_utils', 'pipeline.encoder.attention'} & set(sys.modules))"
    code = f"import sys, pipeline.recall; {look}; load_tokenizer(look_at({minilm!r})); print({heavy})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["pipeline.run.graph", "pipeline.source.opening", "pipeline.driver"])
def test_processes_that_read_and_write_do_not_wait_for_torch(module):
    heavy = "sorted({'torch', 'transformers'} & set(sys.modules))"
    command = [sys.executable, "-c", f"import sys, {module}; print({heavy})"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_reading_a_shard_does_not_wait_for_torch(tmp_path):
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "docs" / "0.parquet")
    dataset = open_dataset(Source(dataset=str(tmp_path / "docs"), text="text"))
    (tmp_path / "pickled").write_bytes(pickle.dumps(dataset))
    read = "with streams_without_torch(): rows = sum(map(len, pickle.load(open(sys.argv[1], 'rb')).read(0)))"
    code = f"import pickle, sys\nfrom pipeline.source.dataset import streams_without_torch\n{read}\n"
    code += "print(rows, 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "pickled")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["2", "False"]


def test_what_tokenizes_beside_gpus_does_not_wait_for_the_code_of_models():
    models = "{'pipeline.encoder.encoder', 'transformers.modeling_utils'}"
    code = f"import pipeline.tokenize, sys; print(*{models} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
