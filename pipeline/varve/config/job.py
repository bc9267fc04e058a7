"""The job file as one type, read from YAML and `--set` settings.

Invariant: a `Job` is always valid, and two jobs with equal `identity()` have the same output bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, model_validator

from varve.config.base import Section, flatten
from varve.config.compute import REMOVED_KEYS, Compute
from varve.config.feature import AnyFeature, Computed, Feature
from varve.config.model import NO_ATTENTIONS_OF_WINDOWS, NO_WINDOWS_OF_PAIRS, Model, Windows
from varve.config.output import Output
from varve.config.source import Source
from varve.config.validation_errors import validate_section
from varve.config.yaml_text import MAX_DEPTH, parse_yaml, read_yaml_file
from varve.errors import JobError, one_line


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a job file is. All origins are equal, so equal jobs from different folders are equal."""

    folder: str = field(default=".", compare=False)


class Job(Section):
    """One run: a source, a model, features and an output."""

    source: Source
    model: Model
    features: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], AnyFeature] | None = Field(
        default=None, description="null: what the checkpoint declares (pool declared), else the last layer's mean"
    )
    output: Output
    compute: Compute = Compute()
    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    @model_validator(mode="after")
    def _check_features(self) -> Self:
        if self.features is not None and not self.features:
            msg = "features is empty: name at least one"
            raise ValueError(msg)
        if self.features and not self.pooled:
            msg = "features holds only Python functions: add at least one feature of the model, with pool"
            raise ValueError(msg)
        if isinstance(self.model.long_text, Windows):
            if len(self.source.text_columns) > 1:
                raise ValueError(NO_WINDOWS_OF_PAIRS)
            if any(feature.pool == "attentions" for feature in self.pooled.values()):
                raise ValueError(NO_ATTENTIONS_OF_WINDOWS)
        return self

    @property
    def pooled(self) -> dict[str, Feature]:
        """The features that the encoder computes; none before the default of `features` is resolved."""
        return {name: feature for name, feature in (self.features or {}).items() if isinstance(feature, Feature)}

    @property
    def reads_declaration(self) -> bool:
        """Whether a feature is, or may be by default, what the checkpoint declares."""
        return self.features is None or any(feature.pool == "declared" for feature in self.pooled.values())

    @property
    def computed(self) -> dict[str, Computed]:
        """The features that Python functions compute."""
        return {name: feature for name, feature in (self.features or {}).items() if isinstance(feature, Computed)}

    @property
    def folder(self) -> str:
        """The folder of the job file, where Python modules are searched first; by default the current folder."""
        return self._origin.folder

    def in_folder(self, folder: str) -> Self:
        """Return the same job with another `folder`."""
        job = self.model_copy()
        job._origin = _Origin(folder)  # noqa: SLF001 (of the same class)
        return job

    def with_features(self, features: Mapping[str, Feature | Computed]) -> Self:
        """Return the same job with these features.

        Raises:
            JobError: they do not fit the rest of the job.
        """
        content = self.model_dump(mode="json") | {
            "features": {name: f.model_dump(mode="json") for name, f in features.items()}
        }
        return self.parse(content).in_folder(self.folder)

    @classmethod
    def load(cls, path: str, settings: Sequence[str] = ()) -> Self:
        """Read a job file, and apply `key.path=value` settings to it.

        Raises:
            JobError: the file is missing or not a YAML mapping, or a key, a value or a setting is wrong.
        """
        content = read_yaml_file(path)
        if not isinstance(content, dict):
            msg = f"{path}: expected a mapping with the keys {', '.join(cls.model_fields)}"
            raise JobError(msg)
        return cls.parse(content, where=path, settings=settings).in_folder(str(Path(path).parent))

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str = "job", settings: Sequence[str] = ()) -> Self:
        """Validate a mapping, after applying `key.path=value` settings to it.

        Args:
            content: the job file's content. Settings change it in place.
            where: start of each message, for example the path of the job file.
            settings: such as "model.max_tokens=256"; values are YAML.

        Raises:
            JobError: with one line per error: the key, the value, what is allowed.
        """
        for setting in settings:
            _apply(setting, content)
        return validate_section(cls, content, where)

    @classmethod
    def reopen(cls, content: Mapping[str, Any], where: str) -> Self:
        """Validate the job that an output recorded, without the keys that later versions removed.

        Raises:
            JobError: see `parse`.
        """
        compute = content.get("compute")
        if isinstance(compute, Mapping):
            kept = {key: value for key, value in compute.items() if key not in REMOVED_KEYS}
            content = {**content, "compute": kept}
        return cls.parse(content, where)

    def identity(self) -> dict[str, Any]:
        """Return the values that decide the output's bytes, flat: {"model.name": ..., ...}.

        The output's path, storage options, the hardware and the limit on errors are not among them.
        """
        content = self.model_dump(mode="json")
        content["output"] = {key: content["output"][key] for key in ("dtype", "rows_per_part")}
        content["compute"] = {key: content["compute"][key] for key in ("tokens_per_pack", "compile")}
        del content["source"]["storage_options"]
        _drop_newer_defaults(content)
        return flatten(content)


# Keys that older outputs lack, with the values that give the same bytes; windows and features have more.
_NEWER = {"source": {"types": {}, "table": None, "at": None, "key": None}, "model": {"role": "none", "prompt": None}}
_NEWER_OF_WINDOWS = {"chunk": None}
_NEWER_OF_FEATURES = {"strategy": "max", "max_active_dims": None, "token_pooling": None}


def _drop_newer_defaults(content: dict[str, Any]) -> None:
    """Remove newer keys with their defaults, so that outputs from before these keys have the same identity."""
    newer = [(content[section], defaults) for section, defaults in _NEWER.items()]
    newer += [(feature, _NEWER_OF_FEATURES) for feature in (content["features"] or {}).values()]
    if isinstance(windows := content["model"]["long_text"], dict):
        newer.append((windows, _NEWER_OF_WINDOWS))
    for section, defaults in newer:
        for key, value in defaults.items():
            if key in section and section[key] == value:
                del section[key]


def json_schema() -> dict[str, Any]:
    """Return the job file's JSON Schema, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}


def _apply(setting: str, content: Any) -> None:
    key_path, equals, value = setting.partition("=")
    if not equals or not key_path:
        msg = f"--set {setting!r}: expected key.path=value, for example model.max_tokens=256"
        raise JobError(msg)
    *parents, key = key_path.split(".")
    if len(parents) > MAX_DEPTH:
        msg = f"--set {one_line(setting, 60)}...: the key has more than {MAX_DEPTH} levels"
        raise JobError(msg)
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            msg = f"--set {setting!r}: {parent} is a value, not a section"
            raise JobError(msg)
    section[key] = parse_yaml(value, where=f"--set {key_path}")
