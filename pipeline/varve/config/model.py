"""The section `model`: the encoder, and how much of a text it encodes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from varve.config.base import Name, Section
from varve.config.credentials import Location

# A window of a pair would need tokens of both texts. The attentions of a row are one square matrix.
NO_WINDOWS_OF_PAIRS = "model.long_text windows take one text, not a pair: use long_text: truncate"
NO_ATTENTIONS_OF_WINDOWS = "pool attentions needs model.long_text: truncate"


class Chunks(Section):
    """Cuts an encoded window into chunks; a chunk's vector is pooled from its tokens, which saw the whole window.

    Source: Günther et al. 2024, Late Chunking: Contextual Chunk Embeddings Using Long-Context Embedding Models.
    """

    by: Literal["tokens", "sentences"] = Field(
        default="tokens", description="tokens: chunks of equal length; sentences: whole sentences, as many as fit"
    )
    tokens: Annotated[int, Field(ge=1)] = Field(description="most tokens of a chunk")
    overlap: Annotated[int, Field(ge=0)] = Field(
        default=0, description="tokens that neighbouring chunks share; by tokens only"
    )

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if self.overlap and self.by == "sentences":
            msg = "overlap needs by: tokens, not by: sentences"
            raise ValueError(msg)
        if self.overlap >= self.tokens:
            msg = f"overlap {self.overlap} must be less than tokens {self.tokens}"
            raise ValueError(msg)
        return self


class Windows(Section):
    """Splits a long text into overlapping windows."""

    window: Annotated[int, Field(ge=8)] = Field(description="tokens of a window, special tokens included")
    stride: Annotated[int, Field(ge=0)] = Field(default=0, description="tokens by which neighbouring windows overlap")
    vectors: Literal["row", "window"] = Field(
        default="row", description="row: one vector per row; window: a list with one vector per window"
    )
    chunk: Chunks | None = Field(
        default=None, description="late chunking: a list with one vector per chunk of the encoded window"
    )

    @model_validator(mode="after")
    def _check_overlap(self) -> Self:
        if self.stride * 2 >= self.window:
            msg = f"stride {self.stride} must be less than half of window {self.window}"
            raise ValueError(msg)
        if self.chunk and self.vectors == "window":
            msg = "chunk gives a list with one vector per chunk: remove vectors: window"
            raise ValueError(msg)
        return self

    @property
    def per_row(self) -> Literal["vector", "windows", "chunks"]:
        """What a row of a pooled feature holds: one vector, or one per window or chunk."""
        if self.chunk:
            return "chunks"
        return "windows" if self.vectors == "window" else "vector"


class Model(Section):
    """The encoder."""

    name: Location = Field(description="Hub id or local folder")
    revision: Name | None = Field(
        default=None, description="branch, tag or commit of a Hub id; a run records the commit and keeps to it"
    )
    max_tokens: Literal["auto"] | Annotated[int, Field(ge=3)] = Field(
        default="auto",
        description="most tokens of a text that are encoded, special tokens included; auto: the length that the "
        "checkpoint declares, if its declaration is used, else 512, or the model's maximum if that is lower",
    )
    role: Literal["none", "query", "document"] = Field(
        default="none",
        description="what the texts are, for checkpoints that encode queries and documents in different ways",
    )
    prompt: str | None = Field(
        default=None, description="text before each text, in place of the prompt that the checkpoint declares"
    )
    long_text: Literal["truncate"] | Windows = Field(
        default="truncate", description="truncate: cut a text at max_tokens; or windows over the whole text"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto",
        description="precision of the encoder; auto: float16 on CUDA, float32 on CPU. bfloat16 on a CPU needs "
        "AVX512-BF16 or AMX: linear layers multiply bfloat16 numbers, everything else stays float32; if no compiled "
        "code fits the model, torch runs all of it in bfloat16",
    )
    trust_remote_code: bool = Field(default=False, description="run Python code that is part of the checkpoint")
