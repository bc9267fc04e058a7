"""Files with the names of modules, as a user's folder may hold them; no process of Varve may run one."""

from collections.abc import Sequence
from pathlib import Path

# Of a user's own program.
OWN = ("jobs/__init__.py", "tests/__init__.py", "config.py", "source.py")
# Of the standard library, of Ray and of what Varve needs; Python and torch import some before any file of Varve.
FOREIGN = (
    "code.py", "datasets/__init__.py", "json.py", "numpy.py", "pandas.py", "pyarrow.py", "ray/__init__.py",
    "selectors.py", "sitecustomize.py", "sklearn/__init__.py", "tokenize.py", "tokenizers.py", "torch/__init__.py",
    "transformers.py", "varve_features.py",
)  # fmt: skip
_MARK = "ran"
_CONTENT = f"""
open(__file__ + ".{_MARK}", "w").close()
raise RuntimeError("a file of the current folder was imported")
"""


def write_clashing(folder: Path, names: Sequence[str] = (*OWN, *FOREIGN)) -> None:
    """Write the files; each leaves a mark and raises when it is run."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(_CONTENT)


def run_ones(folder: Path) -> list[str]:
    """Names of the files that were run."""
    return sorted(path.name.removesuffix(f".{_MARK}") for path in folder.rglob(f"*.{_MARK}"))
