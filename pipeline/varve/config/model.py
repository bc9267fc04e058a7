"""The section `model`: the encoder, and how much of a text it encodes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from varve.config.base import Name, Section
from varve.config.credentials import Location

# A window of a pair would need tokens of both texts. The attentions of a row are one square matrix.
NO_WINDOWS_OF_PAIRS = "model.long_text windows take one text, not a pair: use long_text: truncate"
NO_ATTENTIONS_OF_WINDOWS = "pool attentions needs model.long_text: truncate"


class Windows(Section):
    """Splits a long text into overlapping windows."""

    window: Annotated[int, Field(ge=8)] = Field(description="tokens of a window, special tokens included")
    stride: Annotated[int, Field(ge=0)] = Field(default=0, description="tokens by which neighbouring windows overlap")
    vectors: Literal["row", "window"] = Field(
        default="row", description="row: one vector per row; window: a list with one vector per window"
    )

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if self.stride * 2 >= self.window:
            msg = f"stride {self.stride} must be less than half of window {self.window}"
            raise ValueError(msg)
        return self


class Model(Section):
    """The encoder."""

    name: Location = Field(description="Hub id or local folder")
    revision: Name | None = Field(
        default=None, description="branch, tag or commit of a Hub id; a run records the commit and keeps to it"
    )
    max_tokens: Literal["auto"] | Annotated[int, Field(ge=3)] = Field(
        default="auto",
        description="most tokens of a text that are encoded, special tokens included; auto: 512, or the model's "
        "maximum if that is lower",
    )
    long_text: Literal["truncate"] | Windows = Field(
        default="truncate", description="truncate: cut a text at max_tokens; or windows over the whole text"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="precision of the encoder; auto: float16 on CUDA, float32 on CPU"
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that is part of the checkpoint")
