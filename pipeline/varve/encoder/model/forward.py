"""One pack through the model: token ids in, pooled vectors on the device out.

Knows a loaded model and the layer plan; nothing of threads, memory or the rows that windows come from. Invariants:
token vectors are pooled in float32 as they leave their layer; nothing above the plan's highest layer is run; passes in
several threads at once do not disturb each other.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from varve.encoder.checkpoint.positions import first_position
from varve.encoder.feature_plan import FeaturePlan
from varve.encoder.model import pooling
from varve.encoder.model.batch import Batch, dense_batch, packed_batch
from varve.encoder.model.cls_only_layer import ClsOnlyLayer
from varve.encoder.model.heads import takes_mean
from varve.encoder.model.layer_hooks import LayerHooks
from varve.encoder.packing import Pack

_POOLS = {"cls": pooling.cls, "last": pooling.last, "mean": pooling.mean, "max": pooling.maximum}


@dataclass(slots=True)
class Vectors:
    """What one pack gives, on the device."""

    pooled: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # (pool, layer) → (w, H) float32
    tokens: dict[int, Tensor] = field(default_factory=dict)  # layer → (t, H)
    attentions: dict[int, Tensor] = field(default_factory=dict)  # layer → flat, heads x L x L for each window

    @property
    def kinds(self) -> tuple[dict[Any, Tensor], ...]:
        """Its three dictionaries, in the order of the fields."""
        return self.pooled, self.tokens, self.attentions


class Forward:
    """A model ready to run packs."""

    def __init__(
        self,
        model: PreTrainedModel,
        hooks: LayerHooks,
        plan: FeaturePlan,
        *,
        packed: bool,
        first_tokens: ClsOnlyLayer | None = None,
    ) -> None:
        """Settle what a pass has to bring.

        Args:
            model: with its attention set for the layout.
            hooks: on its layers.
            plan: what is wanted.
            packed: the layout; otherwise dense.
            first_tokens: on its last layer, if that is the plan's highest and runs for them alone.
        """
        self.model, self._hooks, self._plan, self._first_tokens = model, hooks, plan, first_tokens
        # A thread has a device of its own, which kernels that are not torch's run on, whatever their tensors' is.
        self._where = partial(torch.cuda.device, model.device) if model.device.type == "cuda" else nullcontext
        self._lay_out = partial(packed_batch, start=first_position(model)) if packed else dense_batch
        self._pooled = pooled_vectors(plan, model)
        self._wanted = {layer for _, layer in self._pooled} | plan.token_layers
        self._runs_through = bool(plan.attention_layers) or plan.top_layer == plan.num_layers

    @torch.inference_mode()
    def __call__(self, pack: Pack) -> Vectors:
        """Run one pack."""
        plan, last = self._plan, self._plan.num_layers
        batch = self._lay_out(self.model, pack)
        vectors = Vectors()

        def tap(layer: int, hidden: Tensor) -> None:
            self._keep(layer, hidden, batch, vectors)

        stop_at = None if self._runs_through else plan.top_layer
        narrow = nullcontext() if self._first_tokens is None else self._first_tokens.only(batch.cu_seqlens[:-1])
        with self._where(), narrow, self._hooks.open(self._wanted - {last}, tap, stop_at=stop_at):
            output = self.model(**batch.inputs, **({"output_attentions": True} if plan.attention_layers else {}))
            if plan.top_layer == last:
                tap(last, output.last_hidden_state)
            for layer in plan.attention_layers:
                vectors.attentions[layer] = output.attentions[layer - 1].flatten()
        return vectors

    def _keep(self, layer: int, hidden: Tensor, batch: Batch, vectors: Vectors) -> None:
        """Keep of a layer what the plan wants; it is brought to float32 once for all poolings that count in it."""
        if self._first_tokens is not None and layer == self._plan.top_layer:
            vectors.pooled["cls", layer] = hidden[0].float()
            return
        ragged = batch.ragged(hidden)
        pools = [pool for pool, of_layer in self._pooled if of_layer == layer]
        exact = ragged.float() if {"mean", "max"} <= set(pools) else ragged
        for pool in pools:
            vectors.pooled[pool, layer] = _POOLS[pool](exact, batch.cu_seqlens)
        if layer in self._plan.token_layers:
            vectors.tokens[layer] = ragged


def takes_first_tokens_alone(plan: FeaturePlan, model: PreTrainedModel) -> bool:
    """Whether nothing but CLS vectors is wanted of the plan's highest layer."""
    top = plan.top_layer
    pools = {pool for pool, layer in pooled_vectors(plan, model) if layer == top}
    return pools == {"cls"} and top > 0 and top not in plan.token_layers and not plan.attention_layers


def pooled_vectors(plan: FeaturePlan, model: PreTrainedModel) -> frozenset[tuple[str, int]]:
    """Every (pool, layer) that a pass computes: those of the plan, and what its heads stand on."""
    seen = {("cls", plan.num_layers)} if plan.wants("pooler") or plan.wants("logits") else set()
    if plan.wants("logits") and takes_mean(model):
        seen.add(("mean", plan.num_layers))
    return plan.pooled | seen
