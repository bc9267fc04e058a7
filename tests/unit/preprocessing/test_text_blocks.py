from dataclasses import fields

import numpy as np
import pytest
from transformers import AutoTokenizer

from varve.config.model import Chunks
from varve.preprocessing.query_expansion import QueryExpansion
from varve.preprocessing.text_blocks import Tokenized
from varve.preprocessing.tokenizer import Tokenizer
from varve.preprocessing.tokens import Tokens

OPTIONS = {
    "plain": {},
    "spans": {"spans": True},
    "all": {
        "spans": True,
        "windows": True,
        "stride": 1,
        "prompt": "query: ",
        "chunks": Chunks(tokens=2, overlap=1),
        "expansion": QueryExpansion(8, 103, attend=False),
    },
}


@pytest.mark.parametrize("texts", [["one two three four five six", "", "a. b"], []])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_array_of_tokens_survives_arrow_without_a_copy(minilm, options, texts):
    tokens = Tokenizer(AutoTokenizer.from_pretrained(minilm), 8, **options)(texts)
    block = Tokenized(tokens, [None] * len(texts)).to_arrow()
    again = Tokenized.from_arrow(block).tokens
    for name in (field.name for field in fields(Tokens)):
        want, array = getattr(tokens, name), getattr(again, name)
        assert (want is None) == (array is None), name
        if want is not None:
            assert array.dtype == want.dtype, name
            assert array.shape == want.shape, name
            assert np.array_equal(array, want), name
            # Arrow stores truth values as bits.
            assert not len(texts) or name == "truncated" or np.shares_memory(array, want), name


def test_all_fields_of_tokens_are_set_by_all_options_together(minilm):
    tokens = Tokenizer(AutoTokenizer.from_pretrained(minilm), 8, **OPTIONS["all"])(["one two three four", ""])
    assert [field.name for field in fields(Tokens) if getattr(tokens, field.name) is None] == ["token_type_ids"]
