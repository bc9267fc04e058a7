"""Validation of a section, with pydantic's errors as messages about the job file: key, value, what is allowed."""

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from varve.config.base import Section
from varve.config.compute import Compute, Replicas
from varve.config.feature import COMPUTED, Computed, Feature
from varve.config.model import Model, Windows
from varve.config.output import Output
from varve.config.source import Source
from varve.errors import JobError

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
        raise JobError("\n".join(f"{where}: {line}" for line in _describe(model, e))) from e


def _describe(model: type[BaseModel], report: ValidationError) -> list[str]:
    """Return one line per error. The branches of a union, which pydantic reports one by one, share a line."""
    lines: dict[str, list[str]] = {}
    expected: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for error in report.errors():
        location = [str(step) for step in error["loc"] if not _is_branch(str(step))]
        key = ".".join(location)
        values[key] = json.dumps(error["input"], default=str)
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


def _expected(message: str) -> str:
    """Return what pydantic expected, by the names of YAML's types."""
    expected = message.removeprefix("Input should be ").replace("valid tuple", "list")
    return re.sub("valid dictionary or instance of .*", "mapping", expected)


def _reason(model: type[BaseModel], location: list[str], error: dict[str, Any]) -> str | None:
    """Describe an error of a specific kind; None for a value of the wrong type or size."""
    match error["type"]:
        case "extra_forbidden":
            allowed = list(Computed.model_fields) if COMPUTED in error["loc"] else _keys_at(model, location[:-1])
            close = difflib.get_close_matches(location[-1], allowed, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            return f"unknown key. Allowed here: {', '.join(allowed)}.{hint}"
        case "missing":
            return "is required and missing"
        case "value_error":
            return str(error["ctx"]["error"])
        case "string_pattern_mismatch" if location[0] == "compute":
            return f"{json.dumps(error['input'])} is not a name of an environment variable"
        case "string_pattern_mismatch":
            return "is not a feature's name: expected letters, digits and _, with a letter first"
        case _:
            return None


def _is_branch(step: str) -> bool:
    """Whether a step of pydantic's location is a branch of a union, not a key of the job file."""
    return step in {"str", "int", "float", "[key]", "Windows", "Replicas"} or step.startswith(
        ("tuple[", "literal[", "function-", "constrained", "tagged-")
    )


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys that the section at `location` may have."""
    section = _SECTIONS.get(".".join(location)) or (_SECTIONS[location[0]] if location else model)
    return list(section.model_fields)
