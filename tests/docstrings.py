"""Real texts without a download: docstrings of installed packages, whose files are read as data."""

from importlib.util import find_spec
from pathlib import Path

from varve.cli.corpus import docstrings_of

MAX_CHARACTERS = 400


def docstrings(package: str, count: int) -> list[str]:
    """The first `count` distinct docstrings of a package without its tests, in the order of its files."""
    texts: dict[str, None] = {}
    for path in sorted(Path(str(find_spec(package).origin)).parent.rglob("*.py")):
        if "tests" not in path.parts:
            texts |= {text[:MAX_CHARACTERS]: None for _, text in docstrings_of(path, package)}
        if len(texts) >= count:
            break
    return list(texts)[:count]
