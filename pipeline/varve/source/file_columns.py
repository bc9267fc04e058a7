"""Checks of the columns that one file has."""

from collections.abc import Sequence

from varve.source.error_messages import UnreadableFileError


def check_unique(names: Sequence[str], columns: Sequence[str]) -> None:
    """Check that no needed column exists twice.

    Raises:
        UnreadableFileError: one does.
    """
    for name in columns:
        if (number := names.count(name)) > 1:
            msg = f"{number} of its columns are named {name!r}. Rename all but one"
            raise UnreadableFileError(msg)


def check_present(names: Sequence[str], text_columns: Sequence[str]) -> None:
    """Check that a file has the text columns. Other columns are null where a file lacks them.

    Raises:
        UnreadableFileError: it lacks one.
    """
    for name in text_columns:
        if name not in names:
            msg = (
                f"it has no text column {name!r}; its columns: {', '.join(names)}. "
                "Rename its column, or leave the file out of source.data_files"
            )
            raise UnreadableFileError(msg)
