"""The section `source`: the dataset or table that is read."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from varve.config.base import Name, Section, local_path, to_tuple, without_empty
from varve.config.credentials import refuse_credentials
from varve.config.table_address import TableLocation

# Builders of the datasets library that read source.data_files. Any other source.dataset is a folder or a Hub id.
BUILDERS = frozenset({"parquet", "json", "csv", "text", "arrow", "webdataset"})
TEXT_HASH = "text_hash"  # column with the hash of the text, of tables with a key
# Arguments of `datasets` that are not options of a builder → the key of the job that replaces them, if any.
_NO_OPTIONS = {
    "path": "source.dataset",
    "builder_name": "source.dataset",
    "dataset_name": "source.dataset",
    "repo_id": "source.dataset",
    "name": "source.name",
    "config_name": "source.name",
    "config_id": "source.name",
    "data_files": "source.data_files",
    "data_dir": "source.data_files",
    "base_path": "source.data_files",
    "split": "source.split",
    "revision": "source.revision",
    "storage_options": "source.storage_options",
    **dict.fromkeys(("config_kwargs", "download_config", "download_mode", "hash", "info", "streaming")),
    **dict.fromkeys(("trust_remote_code", "writer_batch_size")),
}

# Keys that only datasets have.
_OF_DATASETS = {"name", "data_files", "split", "revision", "types", "options", "storage_options"}


class Source(Section):
    """The Hugging Face dataset or lake table that is read."""

    dataset: Name = Field(
        default="", description="Hub id, folder, or builder: parquet, json, csv, text, arrow, webdataset"
    )
    table: TableLocation | None = Field(
        default=None, description="lake table, in place of dataset: iceberg://CATALOG/NS.TABLE, delta+PATH, lance+PATH"
    )
    at: Name | int | None = Field(
        default=None, description="snapshot id, version, tag, branch or ISO timestamp of the table; null: the current"
    )
    key: Name | None = Field(default=None, description="column of the table that identifies a row: unique, not null")
    name: Name | None = Field(default=None, description="configuration of the dataset, if it has several")
    data_files: Annotated[Name | tuple[Name, ...] | None, BeforeValidator(to_tuple)] = Field(
        default=None, description="paths or fsspec URLs, with globs"
    )
    split: Name = Field(default="train", description="split of the dataset")
    revision: Name | None = Field(
        default=None, description="branch, tag or commit of a Hub id; a run records the commit and keeps to it"
    )
    text: Annotated[Name | tuple[Name, Name], BeforeValidator(to_tuple)] = Field(
        description="column of the text, or two columns for a sentence pair"
    )
    keep: Annotated[tuple[Name, ...], BeforeValidator(to_tuple)] = Field(
        default=(), description="columns copied unchanged to the output"
    )
    types: dict[str, str] = Field(
        default={},
        description="types of columns whose first rows do not show them, e.g. {note: string}",
    )
    options: dict[str, Any] = Field(
        default={}, description="further options of the dataset's builder, e.g. {delimiter: ';'}; no credentials"
    )
    storage_options: dict[str, Any] = Field(
        default={},
        description="options of the fsspec file system, e.g. {anon: true}; credentials come from the environment",
    )

    @field_validator("dataset", "data_files", "options", "storage_options", mode="before")
    @classmethod
    def _check_credentials(cls, value: Any) -> Any:
        return refuse_credentials(value)

    @field_validator("dataset", "data_files")
    @classmethod
    def _decode_uris(cls, value: Any) -> Any:
        return tuple(map(local_path, value)) if isinstance(value, tuple) else value and local_path(value)

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_NO_OPTIONS.keys() & options):
            key = _NO_OPTIONS[taken[0]]
            hint = f"set {key}" if key else "remove it"
            msg = f"{taken[0]!r} is not an option of a builder: {hint}"
            raise ValueError(msg)
        return options

    @field_validator("text", "keep")
    @classmethod
    def _check_columns(cls, columns: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(columns, str) and (twice := sorted({name for name in columns if columns.count(name) > 1})):
            msg = f"names {', '.join(map(repr, twice))} twice: name each column once"
            raise ValueError(msg)
        return columns

    @field_validator("split")
    @classmethod
    def _check_split(cls, split: str) -> str:
        if "[" in split:
            msg = f"{split!r} is part of a split, which cannot be streamed: name the split, or files in data_files"
            raise ValueError(msg)
        return split

    @model_validator(mode="before")
    @classmethod
    def _drop_default(cls, content: Any) -> Any:
        return without_empty(content, "dataset")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if bool(self.dataset) == bool(self.table):
            msg = "source names a dataset and a table" if self.table else "source needs one of dataset and table"
            raise ValueError(msg)
        others = {"at", "key"} if self.table is None else _OF_DATASETS
        fields = Source.model_fields
        if taken := sorted(name for name in others if getattr(self, name) != fields[name].default):
            msg = f"source.{taken[0]} is not a setting of a {'dataset' if self.table is None else 'table'}: remove it"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_types(self) -> Self:
        if unread := sorted(self.types.keys() - set(self.columns)):
            msg = f"types names {', '.join(map(repr, unread))}, which is neither a text column nor kept"
            raise ValueError(msg)
        return self

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The text columns, one or two."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def locations(self) -> tuple[str, ...]:
        """URLs, paths or globs of the files; none of a table."""
        files = (self.data_files,) if isinstance(self.data_files, str) else self.data_files
        return files or ((self.dataset,) if self.dataset else ())

    @property
    def columns(self) -> list[str]:
        """All columns that are read, each once."""
        return list(dict.fromkeys((*self.text_columns, *((self.key,) if self.key else ()), *self.keep)))

    @property
    def kept(self) -> tuple[str, ...]:
        """Columns of the output that are not computed by the model: the key, those of `keep`, the hash of the text."""
        key = (self.key,) if self.key else ()
        return tuple(dict.fromkeys((*key, *self.keep, *((TEXT_HASH,) if self.has_hash else ()))))

    @property
    def has_hash(self) -> bool:
        """Whether rows have the hash of their text: those of tables with a key, and of Lance tables."""
        return self.key is not None or (self.table or "").startswith("lance+")
