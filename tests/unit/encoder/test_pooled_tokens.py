"""An encoder that is called directly pools the tokens of late-interaction vectors itself."""

import numpy as np
import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

from varve.config.model import Model
from varve.encoder.encoder import Encoder

TEXTS = ["A short text about lakes and their sediments.", "!", "Layers of clay and silt, one pair for each year."]


def test_encoder_pools_tokens_as_sentence_transformers(declared):
    model = Model(name=declared("MultiVectorEncoder"), role="document")
    every = Encoder(model, {"e": "declared"}, device="cpu")(TEXTS)["e"]
    pooled = Encoder(model, {"e": "declared+token_pooling=3"}, device="cpu")(TEXTS)["e"]
    pooling = HierarchicalTokenPooling(3)
    for row in range(len(TEXTS)):
        want = pooling.pool_one(torch.from_numpy(every[row].copy())).numpy()
        assert pooled[row].shape == want.shape
        assert np.abs(pooled[row] - want).max(initial=0) <= 1e-6
    assert len(pooled[0]) < len(every[0])
