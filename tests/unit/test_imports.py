"""Dependencies point one way; the files that may talk to Ray Data, object stores and torch are few."""

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.cli.main import COMMANDS
from varve.config.source import Source
from varve.source.open_dataset import open_dataset

ROOT = Path(__file__).parents[2] / "pipeline"
PACKAGE = ROOT / "varve"
FILES = sorted(PACKAGE.rglob("*.py"))
# What may import what: only from left to right.
ORDER = [
    "errors", "ranges", "process_state", "pages", "config", "storage", "monitoring", "lake", "source", "preprocessing",
    "cluster", "encoder", "output", "workers", "planning", "engine", "verification", "backfill", "driver", "submission",
    "probe", "indexing", "retrieval", "exploration", "cli", "__main__",
]  # fmt: skip
MAX_ENTRIES = 28


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports: modules, and names in them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers(package: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name == package or name.startswith(f"{package}.") for name in imported(path))
    }


def test_only_engine_imports_ray_data():
    assert {path.split("/")[0] for path in importers("ray")} == {"cli", "cluster", "engine", "monitoring", "submission"}
    assert {path.split("/")[0] for path in importers("ray.data")} == {"engine"}


def test_only_storage_imports_object_store_clients():
    users = importers("fsspec") | importers("obstore") | importers("pyarrow.fs")
    assert {path.split("/")[0] for path in users} == {"storage"}


@pytest.mark.parametrize("package", ["ray", "pyarrow", "datasets", "fsspec", "obstore"])
def test_encoder_needs_only_torch_and_transformers(package):
    light = ("encoder/", "config/", "preprocessing/tokenizer.py")
    assert {path for path in importers(package) if path.startswith(light)} == set()


def test_folders_import_in_one_order():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries - {"__init__"} == set(ORDER)
    assert len([*PACKAGE.glob("*.*"), *PACKAGE.glob("*/__init__.py")]) <= MAX_ENTRIES
    for path in FILES:
        folder = module_name(path).split(".")[1:2]
        if folder:  # the public names of the package may come from anywhere
            used = {name.split(".")[1] for name in imported(path) if name.startswith("varve.")} & set(ORDER)
            assert all(ORDER.index(other) <= ORDER.index(folder[0]) for other in used), (path, used)


def test_commands_import_no_command():
    for name in COMMANDS:
        assert not imported(PACKAGE / f"cli/{name}.py") & {f"varve.cli.{other}" for other in COMMANDS}, name


def test_files_import_in_no_circle():
    modules = {module_name(path): path for path in FILES if path != PACKAGE / "__init__.py"}
    waiting = {name: imported(path) & set(modules) - {name} for name, path in modules.items()}
    while free := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    assert waiting == {}


def test_no_file_of_the_package_has_the_name_of_a_standard_module():
    """A folder of the package may be the first of sys.path: in a script that is run by its path, or in an editor."""
    names = {path.stem for path in FILES} | {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert names & sys.stdlib_module_names <= {"__init__", "__main__"}


def test_planning_a_known_model_does_not_wait_for_the_code_of_models(minilm):
    look = "from varve.encoder.checkpoint.inspection import inspect_checkpoint; "
    look += "from varve.encoder.checkpoint.pretrained_tokenizer import load_tokenizer"
    heavy = "sorted({'transformers.modeling_utils', 'varve.encoder.model.attention'} & set(sys.modules))"
    code = (
        f"import sys, varve.planning.saved_plan; {look}; load_tokenizer(inspect_checkpoint({minilm!r})); print({heavy})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["varve.engine.dataflow", "varve.source.open_dataset", "varve.driver.embed"])
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
    code = f"import pickle, sys\nfrom varve.source.workarounds import streams_without_torch\n{read}\n"
    code += "print(rows, 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path / "pickled")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["2", "False"]


def test_opening_and_reading_a_stream_of_datasets_needs_no_torch(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    source = f"Source(dataset='text', data_files={str(tmp_path / 'a.txt')!r}, text='text')"
    code = "import sys; from varve.config.source import Source; from varve.source.open_dataset import open_dataset; "
    code += f"print(sum(map(len, open_dataset({source}).read(0))), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["2", "False"]


def test_file_that_shadows_a_standard_module_is_named_as_the_cause(tmp_path):
    (tmp_path / "tokenize.py").write_text("")
    (tmp_path / "program.py").write_text("from varve import Encoder\n")
    result = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1].startswith("ImportError: varve.Encoder: module 'tokenize'")
