"""The heads that read the token vectors of the last layer during a pass.

They give one vector per token, or weights of the vocabulary for each window. Knows nothing of rows. Invariant: heads
compute in float32, whatever the precision of the encoder.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.head import Splade
from varve.encoder.feature_plan import FeaturePlan
from varve.encoder.model.masked_lm import MaskedLmHead, check_masked_lm_head
from varve.encoder.model.sparse_pooling import SparseRows
from varve.encoder.model.steps import Steps


class TokenHeads:
    """The heads of a feature plan that run in a pass."""

    def __init__(
        self, token_steps: Mapping[str, Steps], masked_lm: MaskedLmHead | None, splades: Mapping[str, Splade]
    ) -> None:
        """See `load`.

        Args:
            token_steps: column → steps of each token's vector.
            masked_lm: the masked-LM head, if columns need it.
            splades: column → how its output is reduced.
        """
        self._token_steps, self._masked_lm, self._splades = token_steps, masked_lm, splades

    @classmethod
    def load(
        cls,
        feature_plan: FeaturePlan,
        checkpoint: Checkpoint,
        device: torch.device,
        model: PreTrainedModel | None,
        *,
        token_types: bool,
    ) -> "TokenHeads | None":
        """Load the heads of a plan; None if it has none.

        Args:
            feature_plan: the features.
            checkpoint: of the heads.
            device: of the encoder.
            model: the masked-LM model around the encoder, in float32 with eager attention, if columns need it.
            token_types: the checkpoint's tokenizer gives `token_type_ids`.

        Raises:
            JobError: a file of a head cannot be read, or the masked-LM head cannot be run apart from its model.
        """
        heads, splades = feature_plan.token_heads, feature_plan.masked_lm_heads
        steps = {name: Steps(head.token_steps, checkpoint.root, device) for name, head in heads.items()}
        masked_lm = None
        if splades and model is not None:
            masked_lm = MaskedLmHead.of(model)
            check_masked_lm_head(model, masked_lm, checkpoint.max_positions, token_types=token_types)
        return cls(steps, masked_lm, splades) if steps or masked_lm else None

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the bits of a window do not depend on the other windows of its pack."""
        return not self._token_steps and (self._masked_lm is None or self._masked_lm.is_batch_invariant)

    def token_vectors(self, hidden_TH: Tensor) -> dict[int | str, Tensor]:
        """Column → (T, D) float32 vectors of the tokens."""
        return {name: steps(hidden_TH) for name, steps in self._token_steps.items()}

    def sparse_rows(self, hidden_TH: Tensor, cu_seqlens: Tensor) -> dict[str, SparseRows]:
        """Column → weights of the vocabulary of each window."""
        if self._masked_lm is None:
            return {}
        return self._masked_lm.reduce(hidden_TH, cu_seqlens, self._splades)
