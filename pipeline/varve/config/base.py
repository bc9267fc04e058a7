"""The base class of the job file's sections, and helpers of several sections."""

import re
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
# Text with a visible character and without NUL, which no path and no name of a file holds.
NAME_PATTERN = r"^[^\x00]*[^\s\x00][^\x00]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Section(BaseModel):
    """A section of the job file: frozen, strictly typed, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


def to_tuple(value: object) -> object:
    """Convert a list, as YAML and JSON write it, to a tuple, which a frozen section holds."""
    return tuple(value) if isinstance(value, list) else value


def without_empty(content: object, key: str) -> object:
    """The content of a section with a table, without the key that the table replaces, which is written as empty."""
    if isinstance(content, dict) and content.get("table") and content.get(key) == "":
        return {name: value for name, value in content.items() if name != key}
    return content


def local_path(location: str) -> str:
    """A file URI as a path, percent-decoded (RFC 8089); any other location unchanged."""
    uri = re.fullmatch(r"file:(?://(?:localhost)?)?(/(?!/).*)", location, re.DOTALL)
    return unquote(uri[1]) if uri else location


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
