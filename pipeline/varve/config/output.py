"""The section `output`: where features are written, and in which form."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from varve.config.base import PositiveInt, Section
from varve.config.credentials import Location

_STORES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "https", "file")


class Output(Section):
    """Where features are written, and in which form."""

    path: Location = Field(description="folder or object store prefix")
    dtype: Literal["float32", "float16", "int8", "binary"] = Field(
        default="float32", description="stored type of vectors; int8: with a scale per vector; binary: one bit a value"
    )
    rows_per_part: Literal["auto"] | PositiveInt = Field(
        default="auto", description="rows of a part file; auto: parts of about 64 MB, larger in runs of over 6 TB"
    )
    max_errors: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="number of rows with an error above which the run stops; null: no limit"
    )

    @field_validator("path")
    @classmethod
    def _check_scheme(cls, path: str) -> str:
        scheme, is_address, _ = path.partition("://")
        if is_address and scheme not in _STORES:
            msg = f"{path} is not a folder or an address of a store (s3://, gs://, az://)"
            raise ValueError(msg)
        return path
