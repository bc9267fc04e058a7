"""Loads a checkpoint into a model in float32.

Knows nothing of texts, batches or outputs. Invariants: no weight that is used is random: a checkpoint that lacks one,
or has one of another shape, is rejected; all weights are finite.
"""

from collections.abc import Collection
from typing import Any, Literal

import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.errors import JobError, one_line

_CLASSES = {
    "none": AutoModel,
    "classification": AutoModelForSequenceClassification,
    "masked_lm": AutoModelForMaskedLM,
}


def load_model(
    checkpoint: Checkpoint, *, head: Literal["none", "classification", "masked_lm"], device: torch.device
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """Load the encoder, and with a head the model around it, in float32 with eager attention.

    Returns:
        (encoder, model with the head or None). They share their weights; the encoder of a masked-LM model has no
        pooler.

    Raises:
        JobError: the checkpoint lacks weights, which transformers would initialize randomly, or its weights have other
            shapes than its configuration implies, or contain NaN or infinity.
    """
    model, report = _from_pretrained(checkpoint, _CLASSES[head])
    for name, found, expected in sorted(report["mismatched_keys"]):
        msg = (
            f"model.name: {checkpoint.folder}: the weight {name} has the shape {list(found)}, but config.json implies "
            f"{list(expected)}. The configuration does not belong to these weights: download the model again"
        )
        raise JobError(msg)
    # Without pooler weights and without a head, the pooler is not used.
    ignores_pooler = head == "none" and not checkpoint.shape.has_pooler
    missing = sorted(key for key in report["missing_keys"] if not (ignores_pooler and "pooler." in key))
    if missing:
        msg = (
            f"model.name: {checkpoint.folder} lacks {len(missing)} weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}, ...); they would be random"
        )
        raise JobError(msg)
    model = model.to(device).eval().requires_grad_(requires_grad=False)
    _check_finite(model, report["missing_keys"], checkpoint.folder)
    return (model, None) if head == "none" else (model.base_model, model)


def _from_pretrained(checkpoint: Checkpoint, auto: Any) -> tuple[Any, dict[str, Any]]:
    try:
        return auto.from_pretrained(
            checkpoint.folder,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation="eager",
            trust_remote_code=checkpoint.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused by the caller
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as e:  # models check their configuration with code of their own
        msg = (
            f"model.name: transformers cannot load {checkpoint.folder}: {type(e).__name__}: {one_line(e)}. Check that "
            f"{auto.__name__}.from_pretrained loads this folder"
        )
        raise JobError(msg) from e


def _check_finite(model: PreTrainedModel, unused: Collection[str], folder: str) -> None:
    """Refuse weights with NaN or infinity, and name the first.

    The sum of a tensor is not finite if one of its numbers is not. Only then every number is tested, which takes ten
    times as long, because a sum may overflow.
    """
    weights = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
    if bool(torch.stack([weight.sum().float() for weight in weights.values()]).isfinite().all()):
        return
    for name, weight in weights.items():
        finite = weight.isfinite()
        if name not in unused and not bool(finite.all()):
            count = int((~finite).sum())
            msg = (
                f"model.name: {folder}: the weight {name} has {count:,} of {finite.numel():,} numbers that are NaN or "
                "infinite, so every vector would be. The checkpoint is broken: download it again, or use another one"
            )
            raise JobError(msg)
