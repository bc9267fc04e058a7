"""Validation of a section, with pydantic's errors as messages about the job file: key, value, what is allowed."""

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from varve.config.base import NAME_PATTERN, Section
from varve.config.compute import REMOVED_KEYS, Compute, Replicas
from varve.config.feature import COMPUTED, Computed, Feature
from varve.config.model import Model, Windows
from varve.config.output import Output
from varve.config.source import Source
from varve.errors import JobError, one_line

_MAX_LINES = 20
_MAX_CHARACTERS = 100  # of a value or a key that a message shows

S = TypeVar("S", bound=Section)
_SECTIONS: dict[str, type[Section]] = {
    "source": Source,
    "model": Model,
    "model.long_text": Windows,
    "features": Feature,
    "output": Output,
    "compute": Compute,
    "compute.replicas": Replicas,
}


def validate_section(model: type[S], content: Mapping[str, Any], where: str) -> S:
    """Validate a mapping.

    Args:
        model: the section to create.
        content: the mapping.
        where: start of each message, for example the path of the job file.

    Raises:
        JobError: with one line per error: the key, the value, what is allowed.
    """
    try:
        return model.model_validate(content)
    except ValidationError as e:
        lines = [f"{where}: {line}" for line in _describe(model, e)]
        more = [f"{where}: and {len(lines) - _MAX_LINES} more errors"] if len(lines) > _MAX_LINES else []
        raise JobError("\n".join(lines[:_MAX_LINES] + more)) from e


def _describe(model: type[BaseModel], report: ValidationError) -> list[str]:
    """Return one line per error. The branches of a union, which pydantic reports one by one, share a line."""
    lines: dict[str, list[str]] = {}
    expected: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for error in report.errors():
        location = [str(step) for step in error["loc"] if not _is_branch(str(step))]
        key = one_line(".".join(location), _MAX_CHARACTERS)
        values[key] = _shown(error["input"])
        reason = _reason(model, location, dict(error))
        if reason:
            lines.setdefault(key, []).append(f"{key}: {reason}" if key else reason)
        else:
            expected.setdefault(key, []).append(_expected(error["msg"]))
    for key, choices in expected.items():
        # A branch that failed at a deeper key or in its own check is the one that the user meant.
        if not any(other == key or other.startswith(f"{key}.") for other in lines):
            lines[key] = [f"{key}: {values[key]} is not allowed: expected {' or '.join(dict.fromkeys(choices))}"]
    return [line for of_key in lines.values() for line in dict.fromkeys(of_key)]


def _shown(value: Any) -> str:
    """Return a value as JSON, cut to some characters."""
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError):  # keys that are dates, numbers of thousands of digits
        text = one_line(repr(value))
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def _expected(message: str) -> str:
    """Return what pydantic expected, by the names of YAML's types."""
    expected = message.removeprefix("Input should be ").replace("valid tuple", "list")
    expected = expected.replace("Keys should be strings", "text as a key")
    return re.sub("valid dictionary or instance of .*", "mapping", expected)


def _reason(model: type[BaseModel], location: list[str], error: dict[str, Any]) -> str | None:
    """Describe an error of a specific kind; None for a value of the wrong type or size."""
    match error["type"]:
        case "extra_forbidden":
            allowed = list(Computed.model_fields) if COMPUTED in error["loc"] else _keys_at(model, location[:-1])
            return f"unknown key. Allowed here: {', '.join(allowed)}.{_hint(location, allowed)}"
        case "missing":
            return "is required and missing"
        case "value_error":
            return str(error["ctx"]["error"])
        case "string_pattern_mismatch":
            return _reason_of_pattern(location, error)
        case _:
            return None


def _hint(location: list[str], allowed: list[str]) -> str:
    """The next step after an unknown key."""
    if location[:-1] == ["compute"] and location[-1] in REMOVED_KEYS:
        return f" Remove it: {REMOVED_KEYS[location[-1]]}"
    close = difflib.get_close_matches(location[-1], allowed, 1)
    return f" Did you mean {close[0]}?" if close else ""


def _reason_of_pattern(location: list[str], error: dict[str, Any]) -> str:
    if error["ctx"]["pattern"] == NAME_PATTERN:
        return f"{_shown(error['input'])} is empty or holds a NUL character: expected a name"
    if location[0] == "compute":
        return f"{_shown(error['input'])} is not a name of an environment variable"
    return "is not a feature's name: expected letters, digits and _, with a letter first"


def _is_branch(step: str) -> bool:
    """Whether a step of pydantic's location is a branch of a union, not a key of the job file."""
    return step in {"str", "int", "float", "[key]", "Windows", "Replicas"} or step.startswith(
        ("tuple[", "literal[", "function-", "constrained", "tagged-")
    )


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys that the section at `location` may have."""
    section = _SECTIONS.get(".".join(location)) or (_SECTIONS[location[0]] if location else model)
    return [field.alias or name for name, field in section.model_fields.items()]
