"""Compiles feature definitions into the layers that must run and the columns of the output.

Knows a model only by its `ModelShape`; imports neither torch nor Arrow. Invariant: no column of the plan needs a layer
above `FeaturePlan.top_layer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from varve.config.feature import Feature
from varve.errors import JobError

POOLED = frozenset({"cls", "mean", "max", "last"})  # poolings of token vectors
ROW_COLUMNS = ("num_tokens", "truncated", "error", "shard", "row")
TOKEN_COLUMNS = ("input_ids", "offsets", "sequence_ids")
WINDOW_COLUMN = "windows"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The properties of a checkpoint that decide which features it has."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_labels: int  # outputs of the classification head; 0 without a head
    has_pooler: bool  # the checkpoint has pooler weights


@dataclass(frozen=True, slots=True)
class Column:
    """One feature column of the output.

    `layers` holds one layer, or the layers that `combine` combines. `form` is the content of a row: one vector, a list
    of vectors (one per window or token), or a flat list of heads x T x T attention weights, where T is `num_tokens`.
    """

    name: str
    pool: str
    layers: tuple[int, ...]
    combine: str | None
    normalize: bool
    width: int  # dimensions of a vector; heads for attentions
    dtype: str  # float32 | float16 | int8 | binary
    form: str  # vector | windows | tokens | attentions

    @property
    def scale_name(self) -> str | None:
        """Name of the column with the scales of int8 values, if any."""
        return f"{self.name}_scale" if self.dtype == "int8" else None

    @property
    def feature(self) -> str:
        """Name of the feature: the column's name without a layer suffix."""
        return self.name.removesuffix(_layer_suffix(self.layers[0])) if len(self.layers) == 1 else self.name


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """What an encoder computes: the layers that run, the vectors pooled from each layer, and the output's columns."""

    columns: tuple[Column, ...]
    top_layer: int
    num_layers: int
    special_tokens: bool  # token columns include special tokens

    @property
    def pooled(self) -> frozenset[tuple[str, int]]:
        """Every (pool, layer) that is pooled from token vectors."""
        return frozenset((c.pool, layer) for c in self.columns if c.pool in POOLED for layer in c.layers)

    @property
    def token_layers(self) -> frozenset[int]:
        """Layers whose token vectors are kept."""
        return frozenset(layer for c in self.columns if c.form == "tokens" for layer in c.layers)

    @property
    def attention_layers(self) -> frozenset[int]:
        """Layers whose attention weights are kept."""
        return frozenset(layer for c in self.columns if c.form == "attentions" for layer in c.layers)

    def wants(self, pool: str) -> bool:
        """Whether any column uses this pooling."""
        return any(c.pool == pool for c in self.columns)

    @property
    def has_windows(self) -> bool:
        """Whether columns hold one vector per window."""
        return any(c.form == "windows" for c in self.columns)

    def names(self, *, pairs: bool = False) -> list[str]:
        """Names of all feature columns, in the order of the output."""
        names = [name for c in self.columns for name in (c.name, c.scale_name) if name]
        if self.wants("tokens"):
            names += TOKEN_COLUMNS if pairs else TOKEN_COLUMNS[:2]
        return [*names, WINDOW_COLUMN] if self.has_windows else names


def plan_features(
    features: Mapping[str, Feature], shape: ModelShape, *, dtype: str, per_window: bool = False
) -> FeaturePlan:
    """Compile feature definitions against a checkpoint.

    Args:
        features: name → definition.
        shape: of the checkpoint.
        dtype: of the output; logits and attentions stay float32 if it is int8 or binary.
        per_window: pooled columns hold one vector per window instead of one per row.

    Raises:
        JobError: a layer, pooler or head does not exist, or two columns have the same name.
    """
    columns = tuple(
        column
        for name, feature in features.items()
        for column in _make_columns(name, feature, shape, dtype=dtype, per_window=per_window)
    )
    special_tokens = {feature.special_tokens for feature in features.values() if feature.pool == "tokens"}
    if len(special_tokens) > 1:
        msg = "features: features with pool tokens share input_ids and offsets, so special_tokens must be equal in all"
        raise JobError(msg)
    top_layer = max(layer for column in columns for layer in column.layers)
    feature_plan = FeaturePlan(columns, top_layer, shape.num_layers, special_tokens=True in special_tokens)
    names = [*feature_plan.names(pairs=True), *ROW_COLUMNS]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        msg = f"features: two output columns would be named {duplicates[0]}: rename a feature"
        raise JobError(msg)
    return feature_plan


def _make_columns(name: str, feature: Feature, shape: ModelShape, *, dtype: str, per_window: bool) -> list[Column]:
    layers = _resolve_layers(name, feature, shape)
    _check_weights(name, feature, shape)
    form = feature.pool if feature.pool in {"tokens", "attentions"} else "windows" if per_window else "vector"
    full_width = {"attentions": shape.num_heads, "logits": shape.num_labels}.get(feature.pool, shape.hidden_size)
    groups = [layers] if feature.combine else [(layer,) for layer in layers]
    width = full_width * len(layers) if feature.combine == "concat" else full_width
    if feature.dimensions and feature.dimensions > width:
        msg = f"features.{name}.dimensions: {feature.dimensions} is more than the {width} dimensions of the vector"
        raise JobError(msg)
    if feature.pool in {"attentions", "logits"} and dtype in {"int8", "binary"}:
        dtype = "float32"
    return [
        Column(
            name=name if len(groups) == 1 else f"{name}{_layer_suffix(group[0])}",
            pool=feature.pool,
            layers=group,
            combine=feature.combine,
            normalize=feature.normalize,
            width=feature.dimensions or width,
            dtype=dtype,
            form=form,
        )
        for group in groups
    ]


def _layer_suffix(layer: int) -> str:
    """Ends the name of each column of a feature with several layers."""
    return f"_{layer:02d}"


def _resolve_layers(name: str, feature: Feature, shape: ModelShape) -> tuple[int, ...]:
    """Layer numbers of a definition as indices 0..n into hidden_states."""
    lowest = 1 if feature.pool == "attentions" else 0
    top = shape.num_layers
    if feature.layers == "all":
        return tuple(range(lowest, top + 1))
    layers = feature.layers if isinstance(feature.layers, tuple) else (feature.layers,)
    indices = tuple(layer if layer >= 0 else top + 1 + layer for layer in layers)
    for layer, index in zip(layers, indices, strict=True):
        if not lowest <= index <= top:
            note = "attentions start at 1" if lowest else "0 is the embedding output"
            msg = (
                f"features.{name}.layers: layer {layer} does not exist: the model has {top} layers, expected "
                f"{lowest} to {top} ({note}) or -1 to {lowest - top - 1}"
            )
            raise JobError(msg)
    if len(set(indices)) < len(indices):
        msg = f"features.{name}.layers: {list(layers)} contains a layer twice"
        raise JobError(msg)
    return indices


def _check_weights(name: str, feature: Feature, shape: ModelShape) -> None:
    if feature.pool == "pooler" and not shape.has_pooler:
        msg = (
            f"features.{name}.pool: the checkpoint has no pooler weights, and random weights give meaningless "
            "features. Use cls or mean"
        )
        raise JobError(msg)
    if feature.pool == "logits" and not shape.num_labels:
        msg = (
            f"features.{name}.pool: the checkpoint has no classification head (a ...ForSequenceClassification "
            "checkpoint has one)"
        )
        raise JobError(msg)
