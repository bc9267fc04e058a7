"""The section `output`: where features are written, and in which form."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from varve.config.base import PositiveInt, Section, local_path, without_empty
from varve.config.credentials import Location
from varve.config.table_address import TableLocation

# Of a share, so that a few odd rows do not fail a small run.
_SMALLEST_LIMIT = 10
_SHARE = re.compile(r"[0-9]+(\.[0-9]+)?%", re.ASCII)
_STORES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "https", "file")
SETS = "sets"  # folder of the further feature sets of an output
_SET_NAME = r"^[a-z][a-z0-9_-]*$"


class Output(Section):
    """Where features are written, and in which form."""

    path: Location = Field(default="", description="folder or object store prefix")
    table: TableLocation | None = Field(
        default=None,
        description="lake table, in place of path; created if absent. Lance: the source's own, which gets new columns",
    )
    set: Annotated[str, Field(pattern=_SET_NAME)] | None = Field(
        default=None,
        description="name of a further feature set of the rows at path, written below path/sets; null: the first one",
    )
    partition: Literal["source", "none"] = Field(
        default="source", description="of the table: as the source is partitioned, or none"
    )
    deletes: Literal["follow", "keep"] = Field(
        default="follow", description="rows that left the source leave the table (follow) or stay (keep)"
    )
    since: Literal["auto", "full"] = Field(
        default="auto",
        alias="from",
        description="rows that are looked at: of files that changed since the last run (auto), or of all (full)",
    )
    columns: Literal["auto", "rewrite"] = Field(
        default="auto", description="rewrite: add the columns to the source table itself, whose files are rewritten"
    )
    dtype: Literal["float32", "float16", "int8", "binary"] = Field(
        default="float32", description="stored type of vectors; int8: with a scale per vector; binary: one bit a value"
    )
    rows_per_part: Literal["auto"] | PositiveInt = Field(
        default="auto", description="rows of a part file; auto: parts of about 64 MB, larger in runs of over 6 TB"
    )
    max_errors: (
        Annotated[int, Field(ge=0)]
        | Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_SHARE.pattern}$"})]
        | None
    ) = Field(
        default="1%",
        description="rows that may fail: a number, or a share such as 1%, which allows at least 10; null: no limit. "
        "Null texts are no failures",
    )

    @field_validator("max_errors")
    @classmethod
    def _check_share(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and not (_SHARE.fullmatch(value) and float(value[:-1]) <= 100):
            msg = f"{value!r} is not allowed: expected a number of rows, a share such as 1%, or null"
            raise ValueError(msg)
        return value

    def error_limit(self, num_rows: int) -> int | None:
        """The number of `num_rows` rows that may fail; None: no limit."""
        if isinstance(self.max_errors, str):
            return max(_SMALLEST_LIMIT, int(num_rows * float(self.max_errors[:-1]) / 100))
        return self.max_errors

    @field_validator("path")
    @classmethod
    def _check_scheme(cls, path: str) -> str:
        path = local_path(path)
        scheme, is_address, _ = path.partition("://")
        if is_address and scheme not in _STORES:
            msg = f"{path} is not a folder or an address of a store (s3://, gs://, az://)"
            if scheme == "hf":  # infra/decisions/0038
                name = re.sub(r"^.*?://(datasets/)?", "", path).strip("/")
                msg += f". Write to one of these, then upload it: hf upload {name} FOLDER . --repo-type dataset"
            raise ValueError(msg)
        return path

    @model_validator(mode="before")
    @classmethod
    def _drop_default(cls, content: Any) -> Any:
        return without_empty(content, "path")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if not self.path and self.table is None:
            msg = "output needs one of path and table"
            raise ValueError(msg)
        if self.set and not self.path:
            msg = "output.set needs output.path; a table has a table of its own for each feature set"
            raise ValueError(msg)
        return self

    @property
    def address(self) -> str:
        """Where the results are for their readers: the table, or `root`."""
        return self.table or self.root

    @property
    def root(self) -> str:
        """Where this feature set is written: `path`, or the folder of the set below it."""
        return f"{self.path.rstrip('/')}/{SETS}/{self.set}" if self.set else self.path
