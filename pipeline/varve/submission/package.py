"""What travels to the cluster: the code, the job, and a first file that checks whether it can run there.

Knows nothing of Ray. Invariant: nothing of the environment is packed, so no value of a variable can be.
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
from varve.errors import JobError
from varve.preprocessing.computed_columns import find_computed
from varve.preprocessing.udf.module_source import Code

JOB_FILE = "job.yaml"
START_FILE = "varve-start.py"  # no name of a module, which might be one of the job's
_PACKAGE = Path(__file__).parents[1]


@contextmanager
def packed(job: Job, *, with_code: bool) -> Iterator[Path]:
    """A folder with all that the cluster's Python needs beside its packages, while the context is open."""
    with TemporaryDirectory(prefix="varve-") as root:
        folder = Path(root)
        (folder / JOB_FILE).write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
        for place, text in job_modules(job).items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        shutil.copy(_PACKAGE / "submission/preflight.py", folder / START_FILE)
        if with_code:
            shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=_no_code)
            # Versions and requirements are asked of the distribution, which is not installed there.
            metadata = folder / f"varve-{version('varve')}.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(distribution("varve").read_text("METADATA") or "")
        yield folder


def job_code(job: Job) -> list[Code]:
    """The functions that the job's computed columns name.

    Raises:
        JobError: one is not there.
    """
    return [column.code for column in find_computed(job.computed, job.folder)]


def job_modules(job: Job) -> dict[str, str]:
    """{path below the job's folder: text} of the Python modules that must lie there for the job to run.

    Raises:
        JobError: one is not there, or its text is not UTF-8.
    """
    modules = {module.relative_path: module for code in job_code(job) for module in code.modules}
    for module in modules.values():
        if not _is_utf8(module.text):
            msg = f"{module.path} declares another coding, and travels as UTF-8: save it as UTF-8 without that line"
            raise JobError(msg)
    return {place: module.text for place, module in sorted(modules.items())}


def _is_utf8(text: str) -> bool:
    """Whether Python reads a text as the same, once it is written as UTF-8."""
    try:
        return decode_source(text.encode()) == text
    except (UnicodeDecodeError, SyntaxError):
        return False


def _no_code(folder: str, names: list[str]) -> list[str]:
    """What stays here: all but Python files, the compiled code and its source, and the folders that hold them."""
    kept = (".py", ".so", ".c", ".h")
    return [name for name in names if name == "__pycache__" or not (name.endswith(kept) or Path(folder, name).is_dir())]


def local_paths(job: Job) -> dict[str, str]:
    """{key: value} of what the job names on a disk rather than in a store or on the hub."""
    if job.source.dataset in BUILDERS:
        named = {f"source.data_files[{at}]": path for at, path in enumerate(job.source.locations)}
    else:  # a folder or a hub id, and data_files are within it
        named = {"source.dataset": job.source.dataset}
    named |= {"model.name": job.model.name, "output.path": job.output.path}
    return {key: path for key, path in named.items() if _is_local(key, path)}


def _is_local(key: str, path: str) -> bool:
    if "://" in path or "::" in path:
        return path.startswith("file://")
    ambiguous = key in {"source.dataset", "model.name"}  # a hub id, unless there is such a folder
    return not ambiguous or path.startswith((".", "/", "~")) or Path(path).exists()
