"""Compiles feature definitions against a checkpoint into a feature plan.

Knows a model only by its `ModelShape` and its heads; imports neither torch nor Arrow.
"""

from collections.abc import Mapping

from varve.config.feature import HEADS, Feature
from varve.encoder.checkpoint.head import Head, LexicalWeights, Splade, TokenWeights
from varve.encoder.feature_plan import CHUNK_POOLS, OF_TEXT, ROW_COLUMNS, Column, FeaturePlan, ModelShape, layer_suffix
from varve.errors import JobError


def plan_features(
    features: Mapping[str, Feature],
    shape: ModelShape,
    *,
    dtype: str,
    heads: Mapping[str, Head] | None = None,
    per_row: str = "vector",
) -> FeaturePlan:
    """Compile feature definitions against a checkpoint.

    Args:
        features: name → definition.
        shape: of the checkpoint.
        dtype: of the output; logits and attentions stay float32 if it is int8 or binary, sparse weights always.
        heads: name → head, of features that have one (see `encoder.checkpoint.heads`).
        per_row: what a row of a pooled column holds: vector, windows (one vector per window) or chunks.

    Raises:
        JobError: a layer, pooler or head does not exist, a pooling does not fit `per_row`, or two columns have the same
            name.
    """
    heads = heads or {}
    columns = tuple(
        column
        for name, feature in features.items()
        for column in _make_columns(name, feature, shape, heads.get(name), dtype=dtype, per_row=per_row)
    )
    special_tokens = {feature.special_tokens for feature in features.values() if feature.pool == "tokens"}
    if len(special_tokens) > 1:
        msg = "features: features with pool tokens share input_ids and offsets, so special_tokens must be equal in all"
        raise JobError(msg)
    top_layer = max(layer for column in columns for layer in column.layers)
    feature_plan = FeaturePlan(columns, top_layer, shape.num_layers, special_tokens=True in special_tokens, heads=heads)
    if per_row == "chunks":
        _check_chunk_pools(feature_plan)
    if feature_plan.masked_lm_heads and (others := [pool for pool in ("pooler", "logits") if feature_plan.wants(pool)]):
        msg = f"features: pool {others[0]} and splade need two different models of the checkpoint: write two jobs"
        raise JobError(msg)
    names = [*feature_plan.names(pairs=True), *ROW_COLUMNS]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        msg = f"features: two output columns would be named {duplicates[0]}: rename a feature"
        raise JobError(msg)
    return feature_plan


def _check_chunk_pools(feature_plan: FeaturePlan) -> None:
    for column in feature_plan.columns:
        # A chunk has no tokens of the prompt, so poolings that leave these out are the same.
        pools = [pool.removesuffix(OF_TEXT) for pool in feature_plan.pools(column) or (column.pool,)]
        if column.form == "chunks" and (others := sorted(set(pools) - CHUNK_POOLS)):
            msg = (
                f"features.{column.feature}: model.long_text.chunk pools the tokens of each chunk by mean or max, not "
                f"by {others[0]}. Remove the feature, or remove chunk"
            )
            raise JobError(msg)


def _make_columns(
    name: str, feature: Feature, shape: ModelShape, head: Head | None, *, dtype: str, per_row: str
) -> list[Column]:
    layers = _resolve_layers(name, feature, shape)
    _check_weights(name, feature, shape, head)
    if head is not None:
        return [_make_head_column(name, feature, shape, head, dtype=dtype, per_row=per_row)]
    form = feature.pool if feature.pool in {"tokens", "attentions"} else per_row
    full_width = {"attentions": shape.num_heads, "logits": shape.num_labels}.get(feature.pool, shape.hidden_size)
    groups = [layers] if feature.combine else [(layer,) for layer in layers]
    width = full_width * len(layers) if feature.combine == "concat" else full_width
    _check_dimensions(name, feature, width)
    if feature.pool in {"attentions", "logits"} and dtype in {"int8", "binary"}:
        dtype = "float32"
    return [
        Column(
            name=name if len(groups) == 1 else f"{name}{layer_suffix(group[0])}",
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


def _make_head_column(
    name: str, feature: Feature, shape: ModelShape, head: Head, *, dtype: str, per_row: str
) -> Column:
    forms = {"dense": per_row, "sparse": "sparse", "late": "clusters" if head.token_pooling else "late"}
    is_masked_lm = isinstance(head.pooling, Splade)
    width = head.width(shape.hidden_size)
    if isinstance(head.pooling, (TokenWeights, LexicalWeights)):
        width = head.pooling.vocab_size
    elif is_masked_lm:
        width = shape.vocab_size
    _check_dimensions(name, feature, width)
    if head.kind == "sparse" and (feature.normalize or feature.dimensions):
        msg = f"features.{name}: the checkpoint declares a sparse vector, which takes no normalize and no dimensions"
        raise JobError(msg)
    if is_masked_lm and not shape.vocab_size:
        msg = (
            f"features.{name}.pool: the checkpoint has no masked-LM head (a ...ForMaskedLM checkpoint has one), which "
            f"{feature.pool} needs"
        )
        raise JobError(msg)
    return Column(
        name=name,
        pool=feature.pool,
        layers=(0 if isinstance(head.pooling, TokenWeights) else shape.num_layers,),
        combine=None,
        normalize=feature.normalize,
        width=feature.dimensions or width,
        dtype="float32" if head.kind == "sparse" else dtype,
        form=forms[head.kind],
    )


def _check_dimensions(name: str, feature: Feature, width: int) -> None:
    if feature.dimensions and feature.dimensions > width:
        msg = f"features.{name}.dimensions: {feature.dimensions} is more than the {width} dimensions of the vector"
        raise JobError(msg)


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


def _check_weights(name: str, feature: Feature, shape: ModelShape, head: Head | None) -> None:
    assert head is not None or feature.pool not in HEADS - {"pooler", "logits"}
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
