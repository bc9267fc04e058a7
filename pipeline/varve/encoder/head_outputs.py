"""Pooler outputs and logits of a whole call, computed from the pooled vectors of its windows.

The heads run once for all windows of a call, in the model's dtype on its device.
"""

import torch
from transformers import PreTrainedModel

from varve.encoder.feature_plan import FeaturePlan
from varve.encoder.model.heads import run_head, run_pooler, takes_mean
from varve.encoder.results import HostVectors


class HeadOutputs:
    """The pooler and the classification head of a model, as far as a feature plan needs them."""

    def __init__(
        self,
        feature_plan: FeaturePlan,
        model: PreTrainedModel,
        classifier: PreTrainedModel | None,
        *,
        has_pooler: bool,
        dtype: str,
    ) -> None:
        """Collect the heads.

        Args:
            feature_plan: decides which heads run.
            model: the encoder.
            classifier: the classification model around it, if logits are needed.
            has_pooler: the checkpoint has pooler weights.
            dtype: of the model.
        """
        self._last_layer, self._wants_pooler = feature_plan.num_layers, feature_plan.wants("pooler")
        self._model, self._classifier = model, classifier
        # Some architectures have a pooler under a head only (Nomic, GTE); without a head its weights may be missing.
        self._has_pooler = (has_pooler or classifier is not None) and getattr(model, "pooler", None) is not None
        self._dtype = getattr(torch, dtype)

    @torch.inference_mode()
    def add_to(self, vectors: HostVectors) -> None:
        """Add ("pooler", last layer) and ("logits", last layer) to the pooled vectors, where features need them."""
        if not (self._wants_pooler or self._classifier is not None):
            return
        cls_WH = self._on_device(vectors, "cls")
        pooled = run_pooler(self._model, cls_WH) if self._has_pooler else None
        if self._wants_pooler and pooled is not None:
            vectors.pooled["pooler", self._last_layer] = pooled.numpy(force=True)
        if self._classifier is not None:
            inputs = self._on_device(vectors, "mean") if takes_mean(self._classifier) else cls_WH
            logits = run_head(self._classifier, inputs, None if pooled is None else pooled.to(inputs.dtype))
            vectors.pooled["logits", self._last_layer] = logits.numpy(force=True)

    def _on_device(self, vectors: HostVectors, pool: str) -> torch.Tensor:
        return torch.from_numpy(vectors.pooled[pool, self._last_layer]).to(self._model.device, self._dtype)
