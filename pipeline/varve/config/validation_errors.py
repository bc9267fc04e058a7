"""Pydantic's report on a section, in the words of the job file: the key, the value, what is allowed."""

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
_EXPECTED = re.compile("^Input should be ")


def checked(model: type[S], content: Mapping[str, Any], where: str) -> S:
    """Validate a mapping.

    Args:
        model: the section that it must be.
        content: the mapping.
        where: what it is called in messages.

    Raises:
        JobError: with one line per mistake: the key, the value, what is allowed.
    """
    try:
        return model.model_validate(content)
    except ValidationError as e:
        raise JobError("\n".join(f"{where}: {line}" for line in _explain(model, e))) from e


def _explain(model: type[BaseModel], report: ValidationError) -> list[str]:
    """Pydantic's report in the words of the job file: one line per mistake, branches of a union together."""
    wrong: dict[str, list[str]] = {}
    expected: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for error in report.errors():
        location = [str(step) for step in error["loc"] if not _is_branch(str(step))]
        key = ".".join(location)
        values[key] = json.dumps(error["input"], default=str)
        told = _told(model, location, dict(error))
        if told:
            wrong.setdefault(key, []).append(f"{key}: {told}" if key else told)
        else:
            expected.setdefault(key, []).append(_wanted(error["msg"]))
    for key, choices in expected.items():
        # A branch of a union that was meant, and failed deeper or on its own rule, says more than the others.
        if not any(other == key or other.startswith(f"{key}.") for other in wrong):
            line = f"{key}: {values[key]} is not allowed: expected {' or '.join(dict.fromkeys(choices))}"
            wrong[key] = [line]
    return [line for lines in wrong.values() for line in dict.fromkeys(lines)]


def _wanted(message: str) -> str:
    """What pydantic expected, in the words of YAML."""
    wanted = _EXPECTED.sub("", message).replace("valid tuple", "list")
    return re.sub("valid dictionary or instance of .*", "mapping", wanted)


def _told(model: type[BaseModel], location: list[str], error: dict[str, Any]) -> str | None:
    """What is wrong, where the kind of mistake says it; None for a value of the wrong type or size."""
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
            return f"{json.dumps(error['input'])} is no name of an environment variable"
        case "string_pattern_mismatch":
            return "a feature's name is letters, digits and _, and starts with a letter"
        case _:
            return None


def _is_branch(step: str) -> bool:
    """Whether a step of pydantic's location names a branch of a union, not a key of the job file."""
    return step in {"str", "int", "float", "[key]", "Windows", "Replicas"} or step.startswith(
        ("tuple[", "literal[", "function-", "constrained", "tagged-")
    )


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that the section at `location` may hold."""
    sections: dict[str, type[BaseModel]] = {
        "source": Source,
        "model": Model,
        "output": Output,
        "compute": Compute,
        "features": Feature,
    }
    nested = {"long_text": Windows, "replicas": Replicas}
    if location and location[-1] in nested:
        return list(nested[location[-1]].model_fields)
    return list(sections[location[0]].model_fields if location else model.model_fields)
