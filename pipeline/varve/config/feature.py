"""The section `features`: the columns that the model or a Python function of the user computes for each row."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, field_validator, model_validator

from varve.config.base import PositiveInt, Section, to_tuple

Pool = Literal[
    "declared", "pooler", "cls", "mean", "max", "last", "tokens", "attentions", "logits",
    "splade", "sparse_linear", "colbert_linear",
]  # fmt: skip
# Poolings of the last layer through heads that the checkpoint brings.
HEADS = frozenset({"declared", "pooler", "logits", "splade", "sparse_linear", "colbert_linear"})
SPARSE = frozenset({"splade", "sparse_linear"})

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_COMPUTED_TYPE = re.compile(r"(bool|string)|(int32|int64|float32|float64)(\[([1-9][0-9]*)\])?")
# Tags of the union in pydantic's error locations. The hyphen keeps them apart from names of features.
_POOLED, COMPUTED = "tagged-pool", "tagged-python"


class Feature(Section):
    """One named output of the model: a pooling over one or more layers."""

    pool: Pool = Field(description="how the vectors of a layer become the feature")
    layers: Annotated[int | tuple[int, ...] | Literal["all"], BeforeValidator(to_tuple)] = Field(
        default=-1, description="0 is the embedding output, 1..n the layers; negative numbers count from the last"
    )
    combine: Literal["concat", "sum", "mean"] | None = Field(
        default=None, description="combine several layers into one column; null: one column per layer"
    )
    normalize: bool = Field(default=False, description="scale each vector to Euclidean length 1")
    dimensions: PositiveInt | None = Field(
        default=None, description="keep only the leading dimensions (Matryoshka models)"
    )
    special_tokens: bool = Field(
        default=False, description="pool tokens only: keep special tokens such as [CLS] and [SEP]"
    )

    strategy: Literal["max", "sum"] = Field(
        default="max", description="pool splade only: how the tokens of a text are combined"
    )
    max_active_dims: PositiveInt | None = Field(
        default=None, description="sparse vectors only: keep this many of the largest weights"
    )
    token_pooling: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="late interaction only: cluster the token vectors of a text, and keep one for so many tokens",
    )

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.layers == ():
            msg = "layers is empty: name at least one"
            raise ValueError(msg)
        if self.special_tokens and self.pool != "tokens":
            msg = f"special_tokens needs pool tokens, not {self.pool}"
            raise ValueError(msg)
        if self.pool in HEADS and self.layers != -1:
            msg = f"pool {self.pool} always uses the last layer: remove layers"
            raise ValueError(msg)
        if self.pool in {"attentions", "logits"} | SPARSE and (self.combine or self.normalize or self.dimensions):
            msg = f"pool {self.pool} takes no combine, normalize or dimensions"
            raise ValueError(msg)
        self._check_head_options()
        return self

    def _check_head_options(self) -> None:
        needed = {
            "strategy": (self.strategy != "max", {"splade"}),
            "max_active_dims": (self.max_active_dims is not None, {"declared"} | SPARSE),
            "token_pooling": (self.token_pooling is not None, {"declared", "colbert_linear"}),
        }
        for key, (is_set, pools) in needed.items():
            if is_set and self.pool not in pools:
                msg = f"{key} needs pool {' or '.join(sorted(pools))}, not {self.pool}"
                raise ValueError(msg)


class Computed(Section):
    """One column that a Python function of the user computes from the columns of a row."""

    python: Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{_FUNCTION.pattern}$"})] = Field(
        description="module:function; the module is next to the job file or on the Python path"
    )
    type: Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^({_COMPUTED_TYPE.pattern})$"})] = Field(
        description="bool, string, int32, int64, float32 or float64; float32[8] is a vector of eight numbers"
    )

    @field_validator("python")
    @classmethod
    def _check_function(cls, python: str) -> str:
        if not _FUNCTION.fullmatch(python):
            msg = f"{json.dumps(python)} is not a function: expected module:function, for example my_features:overlap"
            raise ValueError(msg)
        return python

    @field_validator("type")
    @classmethod
    def _check_type(cls, name: str) -> str:
        if not _COMPUTED_TYPE.fullmatch(name):
            msg = (
                f"{json.dumps(name)} is not allowed: expected bool, string, int32, int64, float32 or float64, or a "
                "number type with a length, for example float32[8]"
            )
            raise ValueError(msg)
        return name

    @property
    def value_type(self) -> str:
        """Type of one value: bool, string, int32, int64, float32 or float64."""
        return self.type.partition("[")[0]

    @property
    def length(self) -> int | None:
        """Number of values of a vector; None for a single value."""
        return int(self.type.partition("[")[2][:-1]) if "[" in self.type else None


def _kind_of_feature(value: object) -> str:
    """Choose the kind by the key `python`, so that only the errors of this kind are reported."""
    is_computed = isinstance(value, Computed) or (isinstance(value, Mapping) and "python" in value)
    return COMPUTED if is_computed else _POOLED


AnyFeature = Annotated[
    Annotated[Feature, Tag(_POOLED)] | Annotated[Computed, Tag(COMPUTED)], Discriminator(_kind_of_feature)
]

# Features of a job that names none: of a checkpoint that declares its vectors, and of any other.
DECLARED_FEATURES = {"embedding": Feature(pool="declared")}
MEAN_FEATURES = {"embedding": Feature(pool="mean")}
