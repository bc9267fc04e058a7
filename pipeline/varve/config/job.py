"""A whole job file, from YAML and settings laid over it.

Invariant: a `Job` that exists is well formed, and two jobs with equal `identity()` ask for the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, PrivateAttr, model_validator

from varve.config.base import Section, flatten
from varve.config.compute import Compute
from varve.config.feature import DEFAULT_FEATURES, AnyFeature, Computed, Feature
from varve.config.model import NO_ATTENTIONS_OF_WINDOWS, NO_WINDOWS_OF_PAIRS, Model, Windows
from varve.config.output import Output
from varve.config.source import Source
from varve.config.validation_errors import checked
from varve.errors import JobError, one_line


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a job comes from, which is no part of what it says: all are equal."""

    folder: str = field(default=".", compare=False)


class Job(Section):
    """One run: a source, a model, features of it, and an output."""

    source: Source
    model: Model
    features: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], AnyFeature] = DEFAULT_FEATURES
    output: Output
    compute: Compute = Compute()
    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    @model_validator(mode="after")
    def _pairs_and_windows(self) -> Self:
        if not self.features:
            msg = "features is empty: name at least one"
            raise ValueError(msg)
        if not self.pooled:
            msg = "features holds Python functions alone: name at least one feature of the model too, with pool"
            raise ValueError(msg)
        if isinstance(self.model.long_text, Windows):
            if len(self.source.text_columns) > 1:
                raise ValueError(NO_WINDOWS_OF_PAIRS)
            if any(feature.pool == "attentions" for feature in self.pooled.values()):
                raise ValueError(NO_ATTENTIONS_OF_WINDOWS)
        return self

    @property
    def pooled(self) -> dict[str, Feature]:
        """The features that the encoder gives."""
        return {name: feature for name, feature in self.features.items() if isinstance(feature, Feature)}

    @property
    def computed(self) -> dict[str, Computed]:
        """The features that Python functions compute."""
        return {name: feature for name, feature in self.features.items() if isinstance(feature, Computed)}

    @property
    def folder(self) -> str:
        """That of the job file, where its Python modules are looked for first; the current one without a file."""
        return self._origin.folder

    def at(self, folder: str) -> Self:
        """The same job, with its Python modules in this folder."""
        job = self.model_copy()
        job._origin = _Origin(folder)  # noqa: SLF001 (its own)
        return job

    @classmethod
    def load(cls, path: str, settings: Sequence[str] = ()) -> Self:
        """Read a job file, with `key.path=value` settings laid over it.

        Raises:
            JobError: the file is missing, is no YAML mapping, or a key or value in it is wrong.
        """
        content = _parse_yaml(_read(path), where=path)
        if not isinstance(content, dict):
            msg = f"{path}: expected a mapping with the keys {', '.join(cls.model_fields)}"
            raise JobError(msg)
        return cls.lay_over(content, settings, where=path).at(str(Path(path).parent))

    @classmethod
    def lay_over(cls, content: dict[str, Any], settings: Sequence[str], where: str) -> Self:
        """Validate a mapping with `key.path=value` settings laid over it.

        Raises:
            JobError: a setting, key or value is wrong.
        """
        for setting in settings:
            _lay_over(content, setting)
        return cls.parse(content, where=where)

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str = "job") -> Self:
        """Validate a mapping; `where` names it in messages.

        Raises:
            JobError: with one line per mistake: the key, the value, what is allowed.
        """
        return checked(cls, content, where)

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of the output, flat: {"model.name": ..., ...}.

        Where the output lies, how files are reached, what hardware works and how many errors there may be do not.
        """
        content = self.model_dump(mode="json")
        content["output"] = {key: content["output"][key] for key in ("dtype", "rows_per_part")}
        content["compute"] = {key: content["compute"][key] for key in ("tokens_per_pack", "compile")}
        del content["source"]["storage_options"]
        if not content["source"]["types"]:
            del content["source"]["types"]  # outputs that are older than this key are of the same job
        return flatten(content)


def json_schema() -> dict[str, Any]:
    """The job file's JSON Schema, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}


def _lay_over(content: dict[str, Any], setting: str) -> None:
    key_path, equals, value = setting.partition("=")
    if not equals or not key_path:
        msg = f"--set {setting!r}: expected key.path=value, for example model.max_tokens=256"
        raise JobError(msg)
    *parents, key = key_path.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            msg = f"--set {setting!r}: {parent} is a value, not a section"
            raise JobError(msg)
    section[key] = _parse_yaml(value, where=f"--set {key_path}")


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as e:
        msg = f"{path}: can't be read: {e.strerror}"
        raise JobError(msg) from e
    except UnicodeDecodeError as e:
        msg = f"{path}: is not UTF-8: byte {e.start} is 0x{e.object[e.start]:02x}. Save it as UTF-8"
        raise JobError(msg) from e


class _OneOfEachKey(yaml.SafeLoader):
    """YAML as it is defined: PyYAML takes the last of keys of one name, and drops the others without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def _parse_yaml(text: str, where: str) -> Any:
    try:
        value = yaml.load(text, _OneOfEachKey)  # noqa: S506 (a SafeLoader)
        json.dumps(value, skipkeys=True, default=str)  # raises where an alias stands within what it names
    except yaml.YAMLError as e:
        msg = f"{where}: is not YAML: {_problem(e)}"
        raise JobError(msg) from e
    # Where a value is not what it looks like or is tagged as, PyYAML lets Python's own errors pass.
    except (ValueError, LookupError, AttributeError, RecursionError) as e:
        msg = f"{where}: a value can't be read: {e}. Text that looks like a date or a number stands in quotes"
        raise JobError(msg) from e
    return value


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the text around it, which may be a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"
    return one_line(error)
