"""Pooler outputs and logits of a whole call, computed from the pooled vectors of its windows.

The heads run once for all windows of a call, in the model's dtype on its device.
"""

import torch
from transformers import PreTrainedModel

from varve.encoder.feature_plan import FeaturePlan
from varve.encoder.model.heads import run_head, run_pooler, takes_mean
from varve.encoder.results import HostVectors


@torch.inference_mode()
def add_head_outputs(
    vectors: HostVectors,
    feature_plan: FeaturePlan,
    model: PreTrainedModel,
    classifier: PreTrainedModel | None,
    *,
    has_pooler: bool,
) -> None:
    """Add ("pooler", last layer) and ("logits", last layer) to the pooled vectors, if features need them.

    Args:
        vectors: of the call.
        feature_plan: decides which heads run.
        model: the encoder.
        classifier: the classification model around it, if logits are needed.
        has_pooler: the checkpoint has pooler weights.
    """
    last, wants_pooler = feature_plan.num_layers, feature_plan.wants("pooler")
    if not (wants_pooler or classifier is not None):
        return

    def on_device(pool: str) -> torch.Tensor:
        return torch.from_numpy(vectors.pooled[pool, last]).to(model.device, model.dtype)

    cls_WH = on_device("cls")
    # Some architectures have a pooler under a head only (Nomic, GTE); without a head its weights may be missing.
    runs_pooler = (has_pooler or classifier is not None) and getattr(model, "pooler", None) is not None
    pooled = run_pooler(model, cls_WH) if runs_pooler else None
    if wants_pooler and pooled is not None:
        vectors.pooled["pooler", last] = pooled.numpy(force=True)
    if classifier is not None:
        inputs = on_device("mean") if takes_mean(classifier) else cls_WH
        logits = run_head(classifier, inputs, None if pooled is None else pooled.to(inputs.dtype))
        vectors.pooled["logits", last] = logits.numpy(force=True)
