"""The folder that is sent to a cluster: the code, the job, and a script that checks the cluster's Python first.

Knows nothing of Ray. Invariant: it contains nothing of the environment, and so no value of a variable.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution, version
from importlib.util import decode_source
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from varve.config.job import Job
from varve.config.source import BUILDERS
from varve.config.table_address import parse_table_address
from varve.errors import JobError
from varve.preprocessing.computed_columns import find_computed
from varve.preprocessing.udf.module_source import Code

JOB_FILE = "job.yaml"
START_FILE = "varve-start.py"  # not a valid module name, so it cannot clash with a module of the job
_PACKAGE = Path(__file__).parents[1]


@contextmanager
def package_folder(job: Job, *, with_code: bool) -> Iterator[Path]:
    """A temporary folder with everything that a run on the cluster needs in addition to installed packages.

    Args:
        job: written to the folder, with the modules of its functions.
        with_code: include Varve's own code; False if the cluster has it installed.

    Raises:
        JobError: a module of the job is missing or not UTF-8.
    """
    with TemporaryDirectory(prefix="varve-") as root:
        folder = Path(root)
        (folder / JOB_FILE).write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
        for relative_path, text in job_modules(job).items():
            path = folder / relative_path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        shutil.copy(_PACKAGE / "submission/preflight.py", folder / START_FILE)
        if with_code:
            shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=_no_code)
            # Varve reads its version and requirements from its metadata, which is not installed there.
            metadata = folder / f"varve-{version('varve')}.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(distribution("varve").read_text("METADATA") or "")
        yield folder


def job_code(job: Job) -> list[Code]:
    """The functions of the job's computed columns.

    Raises:
        JobError: a function does not exist.
    """
    return [column.code for column in find_computed(job.computed, job.folder)]


def job_modules(job: Job) -> dict[str, str]:
    """{path relative to the job's folder: text} of the Python modules that the job needs.

    Raises:
        JobError: a module does not exist, or its text is not UTF-8.
    """
    modules = {module.relative_path: module for code in job_code(job) for module in code.modules}
    for module in modules.values():
        if not _is_utf8(module.text):
            msg = f"{module.path} declares another encoding, but is sent as UTF-8. Save it as UTF-8 without that line"
            raise JobError(msg)
    return {relative_path: module.text for relative_path, module in sorted(modules.items())}


def _is_utf8(text: str) -> bool:
    """Whether Python reads the same text after it is written as UTF-8."""
    try:
        return decode_source(text.encode()) == text
    except (UnicodeDecodeError, SyntaxError):
        return False


def _no_code(folder: str, names: list[str]) -> list[str]:
    """The entries that are not sent: all but folders, Python files, and the compiled library with its C source."""
    kept = (".py", ".so", ".c", ".h")
    return [name for name in names if name == "__pycache__" or not (name.endswith(kept) or Path(folder, name).is_dir())]


def local_paths(job: Job) -> dict[str, str]:
    """{key: value} of the job's paths on a disk, which are neither in a store nor on the Hub."""
    if job.source.dataset in BUILDERS:
        paths = {f"source.data_files[{index}]": path for index, path in enumerate(job.source.locations)}
    else:  # a folder or a hub id; data_files are relative to it
        paths = {"source.dataset": job.source.dataset}
    paths |= {"model.name": job.model.name, "output.path": job.output.path}
    tables = {"source.table": job.source.table, "output.table": job.output.table}
    addresses = {key: parse_table_address(table) for key, table in tables.items() if table}
    paths |= {key: address.name for key, address in addresses.items() if address.format != "iceberg"}
    return {key: path for key, path in paths.items() if path and _is_local(key, path)}


def _is_local(key: str, path: str) -> bool:
    if "://" in path or "::" in path:
        return path.startswith("file://")
    may_be_hub_id = key in {"source.dataset", "model.name"}
    return not may_be_hub_id or path.startswith((".", "/", "~")) or Path(path).exists()
