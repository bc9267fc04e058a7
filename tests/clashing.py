"""Files with the names of modules, as a user's folder may hold them; no process of Varve may import one."""

from pathlib import Path

CLASHING = ("jobs/__init__.py", "pandas.py", "tokenize.py", "code.py", "config.py", "source.py", "tests/__init__.py")


def write_clashing(folder: Path) -> None:
    """Write the files; each raises when it is imported."""
    for name in CLASHING:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("raise RuntimeError('a file of the current folder was imported')\n")
