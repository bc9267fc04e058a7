"""Checks of the texts that a caller passes to an `Encoder`."""

from collections.abc import Sequence

from varve.config.model import NO_WINDOWS_OF_PAIRS
from varve.errors import JobError


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None, *, windows: bool) -> None:
    """Check that the arguments are lists of strings; a single string is a sequence too, of its characters.

    Raises:
        JobError: an argument is not a list of strings, the lists differ in length, or pairs are combined with windows.
    """
    for name, values in {"texts": texts, "pairs": pairs}.items():
        if values is not None:
            _check_strings(name, values)
    if pairs is not None and windows:
        raise JobError(NO_WINDOWS_OF_PAIRS)
    if pairs is not None and len(texts) != len(pairs):
        msg = f"pairs: expected one second text for each of the {len(texts)} texts, got {len(pairs)}"
        raise JobError(msg)


def _check_strings(name: str, values: Sequence[str]) -> None:
    if isinstance(values, str):
        msg = f"{name}: expected a list of strings, got a single string: pass [{values[:20]!r}]"
        raise JobError(msg)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            msg = f"{name}: expected strings, got {type(value).__name__} at index {index}: remove it"
            raise JobError(msg)
