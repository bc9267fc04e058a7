"""The small JSON files in which a checkpoint describes itself, and the values in them.

Standard library only. Does not know what the files mean. Invariants: no file outside of the checkpoint's folder is
read; a value has the type that is asked for, or is refused with its file and key.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from varve.encoder.checkpoint.json_file import UnreadableFileError, read_json
from varve.errors import JobError

_MAX_BYTES = 2**24
_AGAIN = "Download the model again"
OTHERS = "Name other features, for example features.e.pool: mean"


@dataclass(frozen=True, slots=True)
class JsonObject:
    """The content of one file. A method returns None, or its default, if the key is absent or null."""

    file: str = ""
    name: str = ""  # `model.name`, for messages
    content: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Raise the error for a value that this version does not know."""
        value = f"{self.content.get(key)!r:.60}"
        msg = f"model.name: {self.name}: {key} in {self.file} is {value}: expected {expected}. {OTHERS}"
        raise JobError(msg)

    def _get(self, key: str, expected: str, is_valid: Callable[[Any], bool]) -> Any:
        value = self.content.get(key)
        if value is not None and not is_valid(value):
            self.refuse(key, expected)
        return value

    def text(self, key: str) -> str | None:
        """A string."""
        return self._get(key, "a text", lambda value: isinstance(value, str))

    def flag(self, key: str, *, default: bool = False) -> bool:
        """A boolean, or 0 or 1."""
        value = self._get(key, "true or false", lambda value: value in (False, True))
        return default if value is None else bool(value)

    def count(self, key: str, *, least: int = 1) -> int | None:
        """A whole number."""
        return self._get(key, f"a whole number from {least}", lambda value: type(value) is int and value >= least)

    def number(self, key: str) -> float | None:
        """A number above 0."""
        value = self._get(key, "a number above 0", lambda value: type(value) in {int, float} and 0 < value < 2**31)
        return None if value is None else float(value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings, or one string."""
        value = self._get(key, "a list of texts", lambda value: isinstance(value, str) or _is_list(value, str))
        return None if value is None else (value,) if isinstance(value, str) else tuple(value)

    def counts(self, key: str) -> tuple[int, ...] | None:
        """A list of whole numbers."""
        value = self._get(key, "a list of whole numbers", lambda value: _is_list(value, int))
        return None if value is None else tuple(value)

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        """One of some words."""
        value = self._get(key, " or ".join(choices), lambda value: isinstance(value, str) and value in choices)
        return default if value is None else value

    def mapping(self, key: str) -> "JsonObject":
        """An object within this one; empty if it is absent."""
        value = self._get(key, "a JSON object", lambda value: isinstance(value, dict))
        return JsonObject(self.file, self.name, value or {})


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(entry) is kind for entry in value)


@dataclass(slots=True)
class SmallFiles:
    """Reads the small files of one checkpoint, and collects their names."""

    root: Path
    name: str  # `model.name`, for messages
    names: list[str] = field(default_factory=list)  # relative to the root

    def refuse(self, problem: str, advice: str = _AGAIN) -> NoReturn:
        """Raise the error for something that cannot be computed."""
        msg = f"model.name: {self.name}: {problem}. {advice}"
        raise JobError(msg)

    def read(self, *path: str) -> JsonObject:
        """A file that must exist.

        Raises:
            JobError: it does not, or does not hold a JSON object.
        """
        file = self.path(*path)
        try:
            content = read_json(self.root / file, _MAX_BYTES)
        except UnreadableFileError as e:
            self.refuse(f"{file} {e}")
        if not isinstance(content, dict):
            self.refuse(f"{file} does not hold a JSON object")
        self.names.append(file)
        return JsonObject(file, self.name, content)

    def read_if_exists(self, *path: str) -> JsonObject:
        """A file; empty if it does not exist."""
        file = self.path(*path)
        return self.read(file) if (self.root / file).exists() else JsonObject(file, self.name)

    def path(self, *parts: str) -> str:
        """A path relative to the root.

        Raises:
            JobError: it leads out of the root.
        """
        path = PurePosixPath(*parts)
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            self.refuse(f"the path {str(path)!r} of a module leads out of the folder", "Use another checkpoint")
        return "" if path == PurePosixPath() else str(path)
