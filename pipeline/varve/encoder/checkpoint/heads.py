"""The heads that a job's features use, and the rules by which its texts become tokens.

Knows an inspected checkpoint; reads no weights but their shapes. Invariant: the declaration of a checkpoint changes
nothing in a job that neither has a feature with pool declared nor names a role.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from varve.config.feature import DECLARED_FEATURES, MEAN_FEATURES, Feature
from varve.config.model import Model
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.declaration import Declaration, TextRules
from varve.encoder.checkpoint.head import Dense, Head, LexicalWeights, Normalize, Splade, Step, TokenMask, TokenPooling
from varve.encoder.checkpoint.head_weights import find_weights
from varve.encoder.feature_plan import FeaturePlan
from varve.errors import JobError


def default_features(checkpoint: Checkpoint) -> dict[str, Feature]:
    """Features of a job that names none: what the checkpoint declares, else the mean of the last layer.

    Raises:
        JobError: the checkpoint declares something that cannot be computed.
    """
    if checkpoint.problem:
        raise JobError(checkpoint.problem)
    return MEAN_FEATURES if checkpoint.declaration is None else DECLARED_FEATURES


def find_heads(features: Mapping[str, Feature], checkpoint: Checkpoint) -> dict[str, Head]:
    """Feature → its head, for features that have one.

    Raises:
        JobError: the checkpoint lacks a head, or declares something that cannot be computed.
    """
    heads = {name: _find_head(name, feature, checkpoint) for name, feature in features.items()}
    return {name: head for name, head in heads.items() if head is not None}


def _find_head(name: str, feature: Feature, checkpoint: Checkpoint) -> Head | None:
    match feature.pool:
        case "declared":
            return _adapt(name, feature, _declaration(f"features.{name}.pool: declared", checkpoint).head)
        case "splade":
            return Head(kind="sparse", pooling=Splade(feature.strategy), max_active_dims=feature.max_active_dims)
        case "sparse_linear":
            weights = LexicalWeights(checkpoint.vocab_size or 0)
            step = _read_linear(checkpoint, feature.pool, "relu")
            return Head(kind="sparse", token_steps=(step,), pooling=weights, max_active_dims=feature.max_active_dims)
        case "colbert_linear":
            steps = (_read_linear(checkpoint, feature.pool, "identity"), Normalize())
            return _adapt(name, feature, Head(kind="late", token_steps=steps, mask=TokenMask(skips_first=True)))
        case _:
            return None


def _declaration(key: str, checkpoint: Checkpoint) -> Declaration:
    if checkpoint.problem:
        raise JobError(checkpoint.problem)
    if checkpoint.declaration is None:
        msg = (
            f"{key}: {checkpoint.name} declares no vectors: it has no modules.json. Name the pooling of its model "
            "card, for example mean or cls"
        )
        raise JobError(msg)
    return checkpoint.declaration


def _adapt(name: str, feature: Feature, head: Head) -> Head:
    """A head with the options of a feature."""
    for key, kind in (("max_active_dims", "sparse"), ("token_pooling", "late")):
        if getattr(feature, key) is not None and head.kind != kind:
            msg = f"features.{name}.{key}: the checkpoint declares a {head.kind} vector: remove {key}"
            raise JobError(msg)
    if feature.max_active_dims:
        head = replace(head, max_active_dims=feature.max_active_dims)
    if feature.token_pooling:
        # The first token, [CLS], stays as it is; the defaults of sentence-transformers' HierarchicalTokenPooling.
        head = replace(head, token_pooling=TokenPooling(float(feature.token_pooling), protected=1, normalize=True))
    return head


def _read_linear(checkpoint: Checkpoint, stem: str, activation: str) -> Step:
    """A linear layer in a file of its own, as in BGE-M3."""
    weights = find_weights(Path(checkpoint.root), "", checkpoint.name, "weight", stem=stem)
    rows, columns = weights.matrix("weight")
    return Dense(weights.file, columns, rows, activation, residual=False, prefix="")


def head_files(model: Model, feature_plan: FeaturePlan, checkpoint: Checkpoint) -> list[str]:
    """Files that decide the features, apart from the encoder's own: of the declaration, and with weights of heads."""
    uses = uses_declaration(model, feature_plan)
    declared = checkpoint.declaration.files if checkpoint.declaration and uses else ()
    steps = [step for head in feature_plan.heads.values() for step in head.token_steps + head.row_steps]
    return sorted({*declared, *(step.file for step in steps if isinstance(step, Dense))})


def uses_declaration(model: Model, feature_plan: FeaturePlan) -> bool:
    """Whether a job's texts are treated as the checkpoint declares."""
    return model.role != "none" or feature_plan.wants("declared")


def text_rules(model: Model, feature_plan: FeaturePlan, checkpoint: Checkpoint) -> TextRules:
    """How the texts of a job become tokens; a prompt of the job replaces the declared one.

    Raises:
        JobError: the job names a role, and the checkpoint declares something that cannot be computed.
    """
    rules = TextRules()
    if uses_declaration(model, feature_plan):
        if checkpoint.problem:
            raise JobError(checkpoint.problem)
        rules = checkpoint.declaration.text if checkpoint.declaration else rules
    return rules if model.prompt is None else replace(rules, prompt=model.prompt)
