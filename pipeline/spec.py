"""The job file as frozen types: what may stand in it, what it means, and how its mistakes are told.

Knows nothing of models, datasets or Ray: whether layer 13 exists is for columns.py, whether a column does for
source.py. Invariant: a `Job` that exists is well formed, and two jobs with equal `identity()` ask for the same bytes.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from pipeline.errors import JobError

Pool = Literal["pooler", "cls", "mean", "max", "last", "tokens", "attentions", "logits"]
PositiveInt = Annotated[int, Field(ge=1)]

# What reads the files named in source.data_files; any other source.dataset is a folder or a hub id.
BUILDERS = frozenset({"parquet", "json", "csv", "text", "arrow", "webdataset"})


def _tupled(value: object) -> object:
    """A frozen job holds tuples; YAML and JSON write lists."""
    return tuple(value) if isinstance(value, list) else value


# Names of options that hold credentials: key and secret of s3fs, account_key and sas_token of adlfs, and their likes.
_SECRET = re.compile(r"(^|[._])key$|_key$|secret|token|passw|credential|connection_string", re.IGNORECASE)
_EXPECTED = re.compile("^Input should be ")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_COMPUTED_TYPE = re.compile(r"(bool|string)|(int32|int64|float32|float64)(\[([1-9][0-9]*)\])?")
# Steps of pydantic's locations that are no keys: no feature can be called so.
_POOLED, _COMPUTED = "tagged-pool", "tagged-python"


class Section(BaseModel):
    """What all sections of the job file share: frozen, strict, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


S = TypeVar("S", bound=Section)


class Source(Section):
    """The Hugging Face dataset that is read."""

    dataset: str = Field(description="hub id, folder, or builder: parquet, json, csv, text, arrow, webdataset")
    name: str | None = Field(default=None, description="configuration of the dataset, where it has several")
    data_files: Annotated[str | tuple[str, ...] | None, BeforeValidator(_tupled)] = Field(
        default=None, description="paths or fsspec URLs, globs allowed"
    )
    split: str = "train"
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id; pinned to its commit")
    text: Annotated[str | tuple[str, str], BeforeValidator(_tupled)] = Field(
        description="column of the text, or two columns for a sentence pair"
    )
    keep: Annotated[tuple[str, ...], BeforeValidator(_tupled)] = Field(
        default=(), description="columns carried through unchanged"
    )
    options: dict[str, Any] = Field(
        default={}, description="further options of the dataset's builder, e.g. {delimiter: ';'}"
    )
    storage_options: dict[str, Any] = Field(
        default={},
        description="of the files' fsspec file system, e.g. {anon: true}; credentials come from the environment",
    )

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in flatten(options):
            if _SECRET.search(name):
                msg = f"{name!r} looks like a credential, which a job file must not hold: set it in the environment"
                raise ValueError(msg)
        return options

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The text columns, one or two."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def locations(self) -> tuple[str, ...]:
        """Where files are named: URLs, paths or globs."""
        files = (self.data_files,) if isinstance(self.data_files, str) else self.data_files
        return files or (self.dataset,)

    @property
    def columns(self) -> list[str]:
        """Every column that is read, each once."""
        return list(dict.fromkeys((*self.text_columns, *self.keep)))


class Windows(Section):
    """How a long text becomes several windows."""

    window: Annotated[int, Field(ge=8)] = Field(description="tokens of a window, special tokens included")
    stride: Annotated[int, Field(ge=0)] = Field(default=0, description="tokens by which neighbouring windows overlap")
    vectors: Literal["row", "window"] = Field(
        default="row", description="one vector per row, or a list with one per window"
    )

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.stride * 2 >= self.window:
            msg = f"stride {self.stride} must be less than half of window {self.window}"
            raise ValueError(msg)
        return self


class Model(Section):
    """The encoder."""

    name: str = Field(description="hub id or folder")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id; pinned to its commit")
    max_tokens: Literal["auto"] | Annotated[int, Field(ge=3)] = Field(
        default="auto",
        description="tokens of a text that are encoded, special tokens included; auto: 512 or the model's most",
    )
    long_text: Literal["truncate"] | Windows = "truncate"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="auto: float16 on CUDA, float32 on CPU"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that the checkpoint brings")


class Feature(Section):
    """One named output: a pooling over one or more layers."""

    pool: Pool
    layers: Annotated[int | tuple[int, ...] | Literal["all"], BeforeValidator(_tupled)] = Field(
        default=-1, description="0 is the embedding output, 1..n the layers, negative from the end"
    )
    combine: Literal["concat", "sum", "mean"] | None = Field(default=None, description="several layers into one column")
    normalize: bool = Field(default=False, description="to unit Euclidean length")
    dimensions: PositiveInt | None = Field(default=None, description="keep the leading dimensions (Matryoshka models)")
    special_tokens: bool = Field(default=False, description="tokens only: keep [CLS], [SEP] and their like")

    @model_validator(mode="after")
    def _options_fit_the_pool(self) -> Self:
        if self.layers == ():
            msg = "layers is empty: name at least one"
            raise ValueError(msg)
        if self.special_tokens and self.pool != "tokens":
            msg = f"special_tokens goes with pool tokens, not with {self.pool}"
            raise ValueError(msg)
        if self.pool in {"pooler", "logits"} and self.layers != -1:
            msg = f"pool {self.pool} comes from the last layer: leave layers away"
            raise ValueError(msg)
        if self.pool in {"attentions", "logits"} and (self.combine or self.normalize or self.dimensions):
            msg = f"pool {self.pool} takes no combine, normalize or dimensions"
            raise ValueError(msg)
        return self


class Computed(Section):
    """One column that a Python function of the user's computes from a row's columns."""

    python: Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_FUNCTION.pattern}$"})] = Field(
        description="module:function; the module lies beside the job file or on the Python path"
    )
    type: Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^({_COMPUTED_TYPE.pattern})$"})] = Field(
        description="bool, string, int32, int64, float32 or float64; a vector of eight is float32[8]"
    )

    @field_validator("python")
    @classmethod
    def _names_a_function(cls, python: str) -> str:
        if not _FUNCTION.fullmatch(python):
            msg = f"{json.dumps(python)} names no function: expected module:function, for example my_features:overlap"
            raise ValueError(msg)
        return python

    @field_validator("type")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if not _COMPUTED_TYPE.fullmatch(name):
            msg = (
                f"{json.dumps(name)} is not allowed: expected bool, string, int32, int64, float32 or float64, or one "
                "of the numbers with a length, as in float32[8]"
            )
            raise ValueError(msg)
        return name

    @property
    def value_type(self) -> str:
        """The type of one value: bool, string, int32, int64, float32 or float64."""
        return self.type.partition("[")[0]

    @property
    def length(self) -> int | None:
        """Values of a vector; None for a single value."""
        return int(self.type.partition("[")[2][:-1]) if "[" in self.type else None


def _kind_of_feature(value: object) -> str:
    """Which of the two kinds of features is meant, so that its mistakes alone are told."""
    is_computed = isinstance(value, Computed) or (isinstance(value, Mapping) and "python" in value)
    return _COMPUTED if is_computed else _POOLED


AnyFeature = Annotated[
    Annotated[Feature, Tag(_POOLED)] | Annotated[Computed, Tag(_COMPUTED)], Discriminator(_kind_of_feature)
]


class Output(Section):
    """Where the features go, and in which form."""

    path: str = Field(description="folder or object store prefix")
    dtype: Literal["float32", "float16", "int8", "binary"] = "float32"
    rows_per_part: Literal["auto"] | PositiveInt = Field(
        default="auto", description="auto: parts of about 64 MB, larger in runs of over 6 TB"
    )
    max_errors: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="rows that may end with an error before the run is stopped; null: any number"
    )


class Replicas(Section):
    """A pool that grows and shrinks with the cluster."""

    min: PositiveInt = 1
    max: PositiveInt

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min > self.max:
            msg = f"min {self.min} is more than max {self.max}"
            raise ValueError(msg)
        return self


class Compute(Section):
    """The hardware's share."""

    replicas: Literal["auto"] | PositiveInt | Replicas = Field(
        default="auto",
        description="auto: as many as the GPUs take, without GPUs as the cores take; {min, max}: as the cluster grows",
    )
    gpus: Literal["auto"] | Annotated[float, Field(ge=0, le=8)] = Field(
        default="auto",
        description="GPUs of each replica; 0.25: four replicas to a GPU; 0: none; auto: 1 where there are any",
    )
    accelerator: str | None = Field(default=None, description="only GPUs of this type, as Ray names it: L4, A100, H100")
    env: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], ...], BeforeValidator(_tupled)] = (
        Field(default=(), description="environment variables that every node must have; their values stay there")
    )
    object_store_bytes: Literal["auto"] | Annotated[int, Field(ge=78643200)] = Field(
        default="auto", description="of shared memory, for a Ray that the run itself starts; auto: Ray's choice"
    )
    tokens_per_pack: Literal["auto"] | Annotated[int, Field(ge=16)] = "auto"
    tokenizers: Literal["auto"] | Annotated[int, Field(ge=0)] = Field(
        default="auto",
        description="tokenizing tasks at once, beside the replicas; 0: each replica tokenizes for itself, which is "
        "faster where both share the CPU; auto: 0 on a CPU, all spare cores with GPUs",
    )
    compile: bool = Field(default=False, description="run the layers through torch.compile; on GPUs only")
    stall_s: PositiveInt = Field(
        default=1800, description="seconds in which no block is finished after which a run is ended with a diagnosis"
    )

    @model_validator(mode="after")
    def _accelerators_are_gpus(self) -> Self:
        if self.accelerator is not None and self.gpus == 0:
            msg = f"accelerator {self.accelerator} needs gpus above 0"
            raise ValueError(msg)
        if isinstance(self.gpus, float) and self.gpus > 1 and self.gpus != int(self.gpus):
            msg = f"gpus {self.gpus} is neither a share of one GPU nor a whole number"
            raise ValueError(msg)
        return self


DEFAULT_FEATURES: dict[str, "Feature | Computed"] = {"embedding": Feature(pool="mean")}


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
                msg = "model.long_text windows take one text column, not a pair: use long_text: truncate"
                raise ValueError(msg)
            if any(feature.pool == "attentions" for feature in self.pooled.values()):
                msg = "pool attentions needs model.long_text: truncate"
                raise ValueError(msg)
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
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as e:
            msg = f"{path}: can't be read: {e.strerror}"
            raise JobError(msg) from e
        except yaml.YAMLError as e:
            msg = f"{path}: is not YAML: {e}"
            raise JobError(msg) from e
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
        return _checked(cls, content, where)

    def identity(self) -> dict[str, Any]:
        """What decides the bytes of the output, flat: {"model.name": ..., ...}.

        Where the output lies, how files are reached, what hardware works and how many errors there may be do not.
        """
        content = self.model_dump(mode="json")
        content["output"] = {key: content["output"][key] for key in ("dtype", "rows_per_part")}
        content["compute"] = {key: content["compute"][key] for key in ("tokens_per_pack", "compile")}
        del content["source"]["storage_options"]
        return flatten(content)


def parse_features(features: Mapping[str, Feature | str] | None) -> dict[str, Feature]:
    """Definitions from definitions or their short forms; the mean of the last layer where there are none.

    Raises:
        JobError: a short form is wrong.
    """
    return {name: _parsed(name, feature) for name, feature in (features or DEFAULT_FEATURES).items()}


def _parsed(name: str, feature: object) -> Feature:
    if isinstance(feature, Feature):
        return feature
    if isinstance(feature, Computed):
        msg = f"features.{name}: a Python function is a feature of jobs alone: call {feature.python} yourself"
        raise JobError(msg)
    return _checked(Feature, parse_feature(f"{name}={feature}")[1], f"features.{name}")


def _checked(model: type[S], content: Mapping[str, Any], where: str) -> S:
    try:
        return model.model_validate(content)
    except ValidationError as e:
        raise JobError("\n".join(f"{where}: {line}" for line in _explain(model, e))) from e


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} → {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def json_schema() -> dict[str, Any]:
    """The job file's JSON Schema, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}


def parse_feature(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME=POOL[@LAYERS][+OPTION]...` → (NAME, feature), as the command line writes features.

    LAYERS is `all` or numbers with commas; OPTION is normalize, concat, sum, mean, special_tokens or dimensions=N.

    Raises:
        JobError: the text does not have this form.
    """
    name, _, rest = text.partition("=")
    definition, *options = rest.split("+")
    pool, _, layers = definition.partition("@")
    feature: dict[str, Any] = {"pool": pool}
    try:
        if layers:
            numbers = [layers] if layers == "all" else [int(number) for number in layers.split(",")]
            feature["layers"] = numbers if len(numbers) > 1 else numbers[0]
        for option in options:
            feature |= _feature_option(option)
        complete = bool(name and pool)
    except (ValueError, KeyError):
        complete = False
    if not complete:
        msg = (
            f"--feature {text!r}: expected NAME=POOL[@LAYERS][+OPTION]..., for example embedding=mean@-1+normalize; "
            "LAYERS is all or numbers with commas, OPTION one of normalize, concat, sum, mean, special_tokens, "
            "dimensions=N"
        )
        raise JobError(msg)
    return name, feature


def _feature_option(option: str) -> dict[str, Any]:
    key, _, value = option.partition("=")
    if key == "dimensions":
        return {"dimensions": int(value)}
    known: dict[str, dict[str, Any]] = {how: {"combine": how} for how in ("concat", "sum", "mean")}
    return {**known, "normalize": {"normalize": True}, "special_tokens": {"special_tokens": True}}[option]


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
    try:
        section[key] = yaml.safe_load(value)
    except yaml.YAMLError as e:
        msg = f"--set {setting!r}: the value is not YAML"
        raise JobError(msg) from e


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
            allowed = list(Computed.model_fields) if _COMPUTED in error["loc"] else _keys_at(model, location[:-1])
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
