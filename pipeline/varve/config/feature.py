"""The section `features`: what is made of each row, by the model or by a function of the user's."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, field_validator, model_validator

from varve.config.base import PositiveInt, Section, tupled

Pool = Literal["pooler", "cls", "mean", "max", "last", "tokens", "attentions", "logits"]

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_COMPUTED_TYPE = re.compile(r"(bool|string)|(int32|int64|float32|float64)(\[([1-9][0-9]*)\])?")
# Steps of pydantic's locations that are no keys: no feature can be called so.
_POOLED, COMPUTED = "tagged-pool", "tagged-python"


class Feature(Section):
    """One named output: a pooling over one or more layers."""

    pool: Pool
    layers: Annotated[int | tuple[int, ...] | Literal["all"], BeforeValidator(tupled)] = Field(
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
    return COMPUTED if is_computed else _POOLED


AnyFeature = Annotated[
    Annotated[Feature, Tag(_POOLED)] | Annotated[Computed, Tag(COMPUTED)], Discriminator(_kind_of_feature)
]

DEFAULT_FEATURES: dict[str, Feature | Computed] = {"embedding": Feature(pool="mean")}
