"""The section `source`: what is read."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from varve.config.base import Section, tupled
from varve.config.credentials import refuse_credentials

# What reads the files named in source.data_files; any other source.dataset is a folder or a hub id.
BUILDERS = frozenset({"parquet", "json", "csv", "text", "arrow", "webdataset"})


class Source(Section):
    """The Hugging Face dataset that is read."""

    dataset: str = Field(description="hub id, folder, or builder: parquet, json, csv, text, arrow, webdataset")
    name: str | None = Field(default=None, description="configuration of the dataset, where it has several")
    data_files: Annotated[str | tuple[str, ...] | None, BeforeValidator(tupled)] = Field(
        default=None, description="paths or fsspec URLs, globs allowed"
    )
    split: str = "train"
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id; pinned to its commit")
    text: Annotated[str | tuple[str, str], BeforeValidator(tupled)] = Field(
        description="column of the text, or two columns for a sentence pair"
    )
    keep: Annotated[tuple[str, ...], BeforeValidator(tupled)] = Field(
        default=(), description="columns carried through unchanged"
    )
    types: dict[str, str] = Field(
        default={}, description="of columns whose first rows don't show theirs, e.g. {note: string, score: float64}"
    )
    options: dict[str, Any] = Field(
        default={}, description="further options of the dataset's builder, e.g. {delimiter: ';'}; no credentials"
    )
    storage_options: dict[str, Any] = Field(
        default={},
        description="of the files' fsspec file system, e.g. {anon: true}; credentials come from the environment",
    )

    @field_validator("dataset", "data_files", "options", "storage_options", mode="before")
    @classmethod
    def _no_credentials(cls, value: Any) -> Any:
        return refuse_credentials(value)

    @field_validator("text", "keep")
    @classmethod
    def _each_once(cls, columns: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(columns, str) and (twins := sorted({name for name in columns if columns.count(name) > 1})):
            msg = f"names {', '.join(map(repr, twins))} twice: name each column once"
            raise ValueError(msg)
        return columns

    @field_validator("split")
    @classmethod
    def _whole(cls, split: str) -> str:
        if "[" in split:
            msg = f"{split!r} is a part of a split, which can't be streamed: name the whole one, or files in data_files"
            raise ValueError(msg)
        return split

    @model_validator(mode="after")
    def _types_of_columns(self) -> Self:
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
        """Where files are named: URLs, paths or globs."""
        files = (self.data_files,) if isinstance(self.data_files, str) else self.data_files
        return files or (self.dataset,)

    @property
    def columns(self) -> list[str]:
        """Every column that is read, each once."""
        return list(dict.fromkeys((*self.text_columns, *self.keep)))
