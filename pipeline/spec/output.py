"""The section `output`: where the features go, and in which form."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.spec.credentials import Location
from pipeline.spec.section import PositiveInt, Section


class Output(Section):
    """Where the features go, and in which form."""

    path: Location = Field(description="folder or object store prefix")
    dtype: Literal["float32", "float16", "int8", "binary"] = "float32"
    rows_per_part: Literal["auto"] | PositiveInt = Field(
        default="auto", description="auto: parts of about 64 MB, larger in runs of over 6 TB"
    )
    max_errors: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="rows that may end with an error before the run is stopped; null: any number"
    )
