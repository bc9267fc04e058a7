"""The section `model`: what encodes, and how much of a text."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from varve.config.base import Section
from varve.config.credentials import Location

# Of a pair, a window would have to hold parts of both; of attentions, a row is one square.
NO_WINDOWS_OF_PAIRS = "model.long_text windows take one text, not a pair: use long_text: truncate"
NO_ATTENTIONS_OF_WINDOWS = "pool attentions needs model.long_text: truncate"


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

    name: Location = Field(description="hub id or folder")
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
