"""The glob patterns of a source on this machine, and whether they would match a file that does not exist yet.

`datasets` resolves the patterns again in every run, so an output must not lie where a source would read it.
"""

from collections.abc import Sequence
from pathlib import Path, PurePath

from varve.config.source import BUILDERS, Source
from varve.source.hf_builder import data_patterns, saved_files
from varve.storage.fsspec_files import matches


def find_matching_glob(spec: Source, paths: Sequence[str]) -> str | None:
    """The first pattern that matches one of the paths, which need not exist; None if none does."""
    return next((pattern for pattern in _globs(spec) for path in paths if _matches(pattern, path)), None)


def _globs(spec: Source) -> Sequence[str]:
    """The patterns. A `save_to_disk` folder lists its files and has none, as a table does."""
    if spec.table:
        return ()
    if spec.dataset not in BUILDERS and (not Path(spec.dataset).is_dir() or saved_files(spec) is not None):
        return ()
    return data_patterns(spec) or [f"{spec.dataset}/**"]


def _matches(pattern: str, path: str) -> bool:
    """Whether `datasets` would read the path: it skips hidden files unless the pattern names hidden parts."""
    return matches(pattern, path) and _num_hidden(pattern) == _num_hidden(path)


def _num_hidden(path: str) -> int:
    return sum(part.startswith((".", "__")) for part in PurePath(path).parts)
