"""The patterns by which a source finds its files on this machine, and whether they find a file that is not there yet.

`datasets` follows them anew in every run. Knows nothing of what the files hold.
"""

from collections.abc import Sequence
from pathlib import Path, PurePath

from varve.config.source import BUILDERS, Source
from varve.source.hf_builder import saved_files
from varve.storage.fsspec_files import matches


def finding(spec: Source, paths: Sequence[str]) -> str | None:
    """The pattern that finds one of some paths, whether they are there or not; None where none does."""
    return next((pattern for pattern in _patterns(spec) for path in paths if _finds(pattern, path)), None)


def _patterns(spec: Source) -> Sequence[str]:
    """All but those of stores and the hub. A folder that says for itself which files it has finds no others."""
    if spec.dataset in BUILDERS:
        return spec.locations
    if not Path(spec.dataset).is_dir() or saved_files(spec) is not None:
        return ()
    return [str(Path(spec.dataset, pattern)) for pattern in (spec.locations if spec.data_files else ("**",))]


def _finds(pattern: str, path: str) -> bool:
    """`datasets` passes over what is hidden, unless a pattern says that it is meant."""
    return matches(pattern, path) and _hidden(pattern) == _hidden(path)


def _hidden(path: str) -> int:
    return sum(part.startswith((".", "__")) for part in PurePath(path).parts)
