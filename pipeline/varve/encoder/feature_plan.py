"""Feature definitions → the layers that must run and the columns that come out. Pure.

Knows a model only by its `ModelShape` and imports neither torch nor Arrow. Invariant: no layer above
`FeaturePlan.top_layer` is needed for any column of the plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from varve.config.feature import Feature
from varve.errors import JobError

POOLED = frozenset({"cls", "mean", "max", "last"})
ROW_COLUMNS = ("num_tokens", "truncated", "error", "shard", "row")
TOKEN_COLUMNS = ("input_ids", "offsets", "sequence_ids")
WINDOW_COLUMN = "windows"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What features need to know of a checkpoint."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_labels: int  # outputs of the classification head; 0 without one
    has_pooler: bool  # pooler weights are in the checkpoint


@dataclass(frozen=True, slots=True)
class Column:
    """One feature column of the output.

    `layers` holds one layer, or those that `combine` brings together. `form` says what a row holds: one vector, a list
    of vectors (one per window or per token), or a flat list of attention weights, heads x T x T for T `num_tokens`.
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
        """The column of int8 scales that stands beside this one, if any."""
        return f"{self.name}_scale" if self.dtype == "int8" else None

    @property
    def feature(self) -> str:
        """The name of the feature: the column's own, without the layer where it ends in its layer."""
        return self.name.removesuffix(_ending(self.layers[0])) if len(self.layers) == 1 else self.name


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """The layer plan of a job: what runs, what is pooled where, which columns come out."""

    columns: tuple[Column, ...]
    top_layer: int
    num_layers: int
    special_tokens: bool  # token columns hold special tokens too

    @property
    def pooled(self) -> frozenset[tuple[str, int]]:
        """Every (pool, layer) that is computed on token vectors."""
        return frozenset((c.pool, layer) for c in self.columns if c.pool in POOLED for layer in c.layers)

    @property
    def token_layers(self) -> frozenset[int]:
        """Layers of which every token's vector is kept."""
        return frozenset(layer for c in self.columns if c.form == "tokens" for layer in c.layers)

    @property
    def attention_layers(self) -> frozenset[int]:
        """Layers of which the attention weights are kept."""
        return frozenset(layer for c in self.columns if c.form == "attentions" for layer in c.layers)

    def wants(self, pool: str) -> bool:
        """Whether any column uses this pooling."""
        return any(c.pool == pool for c in self.columns)

    @property
    def has_windows(self) -> bool:
        """Whether columns hold one vector per window."""
        return any(c.form == "windows" for c in self.columns)

    def names(self, *, pairs: bool = False) -> list[str]:
        """The names of all columns that features bring, in the order of the output."""
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
        dtype: the output's dtype; logits and attentions stay float32 where it is int8 or binary.
        per_window: pooled columns hold one vector per window instead of one per row.

    Raises:
        JobError: a layer, pooler or head does not exist, or two columns would have one name.
    """
    columns = tuple(
        column
        for name, feature in features.items()
        for column in _columns(name, feature, shape, dtype=dtype, per_window=per_window)
    )
    special = {feature.special_tokens for feature in features.values() if feature.pool == "tokens"}
    if len(special) > 1:
        msg = (
            "features: all features with pool tokens share input_ids and offsets, so give them the same special_tokens"
        )
        raise JobError(msg)
    plan = FeaturePlan(
        columns, max(layer for c in columns for layer in c.layers), shape.num_layers, special_tokens=True in special
    )
    _refuse_twins([*plan.names(pairs=True), *ROW_COLUMNS])
    return plan


def _refuse_twins(names: list[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        msg = f"features: two output columns would be called {twins[0]}: rename a feature"
        raise JobError(msg)


def _columns(name: str, feature: Feature, shape: ModelShape, *, dtype: str, per_window: bool) -> list[Column]:
    layers = _resolve_layers(name, feature, shape)
    _refuse_missing(name, feature, shape)
    form = feature.pool if feature.pool in {"tokens", "attentions"} else "windows" if per_window else "vector"
    raw = {"attentions": shape.num_heads, "logits": shape.num_labels}.get(feature.pool, shape.hidden_size)
    groups = [layers] if feature.combine else [(layer,) for layer in layers]
    width = raw * len(layers) if feature.combine == "concat" else raw
    if feature.dimensions and feature.dimensions > width:
        msg = f"features.{name}.dimensions: {feature.dimensions} is more than the {width} that the vector has"
        raise JobError(msg)
    if feature.pool in {"attentions", "logits"} and dtype in {"int8", "binary"}:
        dtype = "float32"
    return [
        Column(
            name=name if len(groups) == 1 else f"{name}{_ending(group[0])}",
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


def _ending(layer: int) -> str:
    """What tells the columns of one feature apart."""
    return f"_{layer:02d}"


def _resolve_layers(name: str, feature: Feature, shape: ModelShape) -> tuple[int, ...]:
    """Layers as indices 0..n into hidden_states."""
    lowest = 1 if feature.pool == "attentions" else 0
    top = shape.num_layers
    if feature.layers == "all":
        return tuple(range(lowest, top + 1))
    wanted = feature.layers if isinstance(feature.layers, tuple) else (feature.layers,)
    resolved = tuple(layer if layer >= 0 else top + 1 + layer for layer in wanted)
    for layer, index in zip(wanted, resolved, strict=True):
        if not lowest <= index <= top:
            what = "attentions exist for" if lowest else "it has"
            msg = (
                f"features.{name}.layers: layer {layer} does not exist: the model has {top} layers, {what} indices "
                f"{lowest} to {top}"
                + ("" if lowest else " (0 is the embedding output)")
                + f", or -1 to {lowest - top - 1}"
            )
            raise JobError(msg)
    if len(set(resolved)) < len(resolved):
        msg = f"features.{name}.layers: {list(wanted)} names a layer twice"
        raise JobError(msg)
    return resolved


def _refuse_missing(name: str, feature: Feature, shape: ModelShape) -> None:
    if feature.pool == "pooler" and not shape.has_pooler:
        msg = (
            f"features.{name}.pool: the checkpoint has no pooler weights, and random ones would mean nothing. "
            "Use cls or mean"
        )
        raise JobError(msg)
    if feature.pool == "logits" and not shape.num_labels:
        msg = (
            f"features.{name}.pool: the checkpoint has no classification head (a ...ForSequenceClassification "
            "checkpoint has one)"
        )
        raise JobError(msg)
