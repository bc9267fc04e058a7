"""One pack through the model: token ids in, pooled vectors on the device out.

Knows a loaded model and the feature plan, but no threads, memory limits or rows. Invariants: token vectors are pooled
in float32 as they leave their layer; layers above the highest one needed are not run; passes in several threads at the
same time are independent.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from varve.encoder.checkpoint.positions import first_position
from varve.encoder.feature_plan import OF_TEXT, FeaturePlan
from varve.encoder.model import pooling
from varve.encoder.model.batch import Batch, dense_batch, packed_batch
from varve.encoder.model.cls_only_layer import ClsOnlyLayer
from varve.encoder.model.heads import takes_mean
from varve.encoder.model.layer_hooks import LayerHooks
from varve.encoder.model.sparse_pooling import SparseRows
from varve.encoder.model.token_heads import TokenHeads
from varve.encoder.model.units import Units
from varve.encoder.packing import Pack

_POOLS = {
    "cls": pooling.cls,
    "last": pooling.last,
    "mean": pooling.mean,
    "max": pooling.maximum,
    "mean_sqrt_len": pooling.mean_sqrt_len,
    "weighted_mean": pooling.weighted_mean,
}


@dataclass(slots=True)
class Vectors:
    """The results of one pack, on the device."""

    pooled: dict[tuple[str, int], Tensor] = field(default_factory=dict)  # (pool, layer) → (U, H) float32
    tokens: dict[int | str, Tensor] = field(default_factory=dict)  # layer, or column of a head → (T, D)
    attentions: dict[int, Tensor] = field(default_factory=dict)  # layer → flat, heads x L x L for each window
    sparse: dict[str, SparseRows] = field(default_factory=dict)  # column → weights of the vocabulary of each window


class Forward:
    """A model ready to run packs."""

    def __init__(
        self,
        model: PreTrainedModel,
        hooks: LayerHooks,
        feature_plan: FeaturePlan,
        *,
        packed: bool,
        token_types: bool,
        cls_only_layer: ClsOnlyLayer | None = None,
        heads: TokenHeads | None = None,
        prompt_tokens: int = 0,
    ) -> None:
        """Prepare passes.

        Args:
            model: with its attention set for the layout.
            hooks: on the model's layers.
            feature_plan: the features to compute.
            packed: use the packed layout; otherwise the dense one.
            token_types: the checkpoint's tokenizer gives `token_type_ids`.
            cls_only_layer: on the model's last layer, if the highest layer of the plan is computed for CLS tokens only.
            heads: of the plan, which read the token vectors of the last layer.
            prompt_tokens: first tokens of each window, which poolings of the text leave out.
        """
        self.model, self._hooks, self._feature_plan = model, hooks, feature_plan
        self._cls_only_layer, self._heads, self._prompt_tokens = cls_only_layer, heads, prompt_tokens
        # The current CUDA device is per thread, and Triton launches on it whatever the device of the tensors.
        self._device_context = partial(torch.cuda.device, model.device) if model.device.type == "cuda" else nullcontext
        packing, padding = (
            partial(packed_batch, start=first_position(model)),
            partial(dense_batch, token_types=token_types),
        )
        self._make_batch = packing if packed else padding
        self._pooled = pooled_vectors(feature_plan, model)
        self._wanted_layers = {layer for _, layer in self._pooled} | feature_plan.token_layers
        all_layers = feature_plan.attention_layers or feature_plan.top_layer == feature_plan.num_layers
        self._stop_at = None if all_layers else feature_plan.top_layer

    @torch.inference_mode()
    def __call__(self, pack: Pack) -> Vectors:
        """Run one pack."""
        plan, last = self._feature_plan, self._feature_plan.num_layers
        batch = self._make_batch(self.model, pack)
        units = Units(pack, batch.cu_seqlens, self._prompt_tokens)
        vectors = Vectors()

        def tap(layer: int, hidden: Tensor) -> None:
            self._keep(layer, hidden, batch, units, vectors)

        layer = self._cls_only_layer
        cls_only = nullcontext() if layer is None else layer.only(batch.cu_seqlens[:-1])
        hooks = self._hooks.open(self._wanted_layers - {last}, tap, stop_at=self._stop_at)
        with self._device_context(), cls_only, hooks:
            output = self.model(**batch.inputs, **({"output_attentions": True} if plan.attention_layers else {}))
            if plan.top_layer == last:
                tap(last, output.last_hidden_state)
            for layer in plan.attention_layers:
                vectors.attentions[layer] = output.attentions[layer - 1].flatten()
        return vectors

    def _keep(self, layer: int, hidden: Tensor, batch: Batch, units: Units, vectors: Vectors) -> None:
        """Add to `vectors` what the plan needs of a layer."""
        if self._cls_only_layer is not None and layer == self._feature_plan.top_layer:
            vectors.pooled["cls", layer] = hidden[0].float()
            return
        ragged = batch.ragged(hidden)
        pools = [pool for pool, pooled_layer in self._pooled if pooled_layer == layer]
        hidden_TH = ragged.float() if {"mean", "max"} <= set(pools) else ragged  # converts once for both
        for pool in pools:
            vectors.pooled[pool, layer] = _pool(hidden_TH, pool, units)
        if layer in self._feature_plan.token_layers:
            vectors.tokens[layer] = ragged
        if self._heads is not None and layer == self._feature_plan.num_layers:
            vectors.tokens |= self._heads.token_vectors(ragged)
            vectors.sparse |= self._heads.sparse_rows(ragged, batch.cu_seqlens)


def _pool(hidden_TH: Tensor, pool: str, units: Units) -> Tensor:
    """(U, H) one vector per window or chunk."""
    name = pool.removesuffix(OF_TEXT)
    if name == pool:
        return _POOLS[name](*units.all_tokens(hidden_TH))
    hidden, cu_seqlens = units.text_tokens(hidden_TH)
    if name == "weighted_mean":
        return pooling.weighted_mean(hidden, cu_seqlens, units.prompt_tokens)
    return _POOLS[name](hidden, cu_seqlens)


def needs_only_cls_of_top_layer(feature_plan: FeaturePlan, model: PreTrainedModel) -> bool:
    """Whether the features need nothing but CLS vectors of the highest layer."""
    top = feature_plan.top_layer
    pools = {pool for pool, layer in pooled_vectors(feature_plan, model) if layer == top}
    reads_tokens = top in feature_plan.token_layers or feature_plan.token_heads or feature_plan.masked_lm_heads
    return pools == {"cls"} and top > 0 and not reads_tokens and not feature_plan.attention_layers


def pooled_vectors(feature_plan: FeaturePlan, model: PreTrainedModel) -> frozenset[tuple[str, int]]:
    """Every (pool, layer) that a pass computes: the features need them, or the heads read them."""
    last, needs_logits = feature_plan.num_layers, feature_plan.wants("logits")
    inputs = {("cls", last)} if feature_plan.wants("pooler") or needs_logits else set()
    if needs_logits and takes_mean(model):
        inputs.add(("mean", last))
    return feature_plan.pooled | inputs
