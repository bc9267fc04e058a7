"""Tokens that expand a query: they attend to the query, and the query does not attend to them."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.models import TOLERANCE
from varve.encoder.model.batch import dense_batch, packed_batch
from varve.encoder.packing import Pack
from varve.preprocessing.query_expansion import QueryExpansion
from varve.preprocessing.tokenizer import Tokenizer

QUERIES = ["a query", "x", "a longer query of several words", "a query that is not expanded " * 3]


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_expanded_queries_have_the_hidden_states_of_transformers(tiny, architecture):
    folder = tiny(architecture)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    expansion = QueryExpansion(12, tokenizer.mask_token_id, attend=False)
    tokens = Tokenizer(tokenizer, 32, expansion=expansion)(QUERIES)
    order = np.argsort(tokens.lengths, kind="stable")
    pack = Pack.of(tokens, order, order)
    batch = dense_batch(model, pack, token_types=False)
    with torch.inference_mode():
        hidden = batch.ragged(model(**batch.inputs).last_hidden_state)
        for place, query in enumerate(order):
            ids = tokenizer(QUERIES[query], return_tensors="pt")["input_ids"]
            missing = max(0, 12 - ids.shape[1])
            expanded = torch.nn.functional.pad(ids, (0, missing), value=tokenizer.mask_token_id)
            mask = torch.nn.functional.pad(torch.ones_like(ids), (0, missing))
            want = model(input_ids=expanded, attention_mask=mask).last_hidden_state[0]
            found = hidden[batch.cu_seqlens[place] : batch.cu_seqlens[place + 1]]
            assert found.shape == want.shape
            assert (found - want).abs().max() <= TOLERANCE


def test_packed_batch_refuses_tokens_that_are_not_attended_to(tiny):
    model = AutoModel.from_pretrained(tiny("bert"))
    pack = Pack(np.arange(1), np.array([3]), np.array([5, 6, 7], np.int32), attended=np.array([2]))
    with pytest.raises(AssertionError, match="packed attention has no mask"):
        packed_batch(model, pack)
