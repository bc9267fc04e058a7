import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import numpy as np
import pytest
from tokenizers import AddedToken
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from varve.errors import RunError
from varve.preprocessing.fast_tokenizer import NanotokenWordPiece
from varve.preprocessing.tokenizer import Tokenizer
from varve.preprocessing.tokens import Tokens

TEXTS = [
    "one two three four five six seven eight nine ten",
    "",
    "unbelievable " * 300,
    "x" * 200,
    "日本語 é [SEP] 🙂",
    "a",
]
OPTIONS = {
    "truncated": {"max_tokens": 8},
    "one token of text": {"max_tokens": 3},
    "windows": {"max_tokens": 8, "windows": True, "stride": 2},
    "prompt": {"max_tokens": 8, "prompt": "query: "},
    "lower case": {"max_tokens": 8, "lower_case": True},
    "long": {"max_tokens": 400},
}


@pytest.fixture(scope="module")
def pretrained(minilm):
    return AutoTokenizer.from_pretrained(minilm)


def equal(got, want):
    arrays = [(getattr(got, field.name), getattr(want, field.name)) for field in fields(Tokens)]
    return all((a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b)) for a, b in arrays)


def other_ids(self, texts, max_tokens=None, side="right"):
    ids, starts = encode(self, texts, max_tokens, side)
    return np.where(ids == 2397, np.int32(2398), ids), starts  # 2397 is "late"


encode = NanotokenWordPiece.encode


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fast_tokenizer_gives_the_arrays_of_tokenizers(minilm, options, side):
    given = AutoTokenizer.from_pretrained(minilm, truncation_side=side)
    fast, slow = Tokenizer(given, **options), Tokenizer(given, **options, fast=False)
    assert fast.description.startswith("nanotoken ")
    for texts in (TEXTS, TEXTS[:1], []):
        assert equal(fast(texts), slow(texts))


def test_copy_from_a_pickle_is_as_fast(pretrained):
    tokenizer = pickle.loads(pickle.dumps(Tokenizer(pretrained, 8)))
    assert tokenizer.description.startswith("nanotoken ")
    assert equal(tokenizer(TEXTS), Tokenizer(pretrained, 8)(TEXTS))


def test_threads_that_tokenize_at_the_same_time_get_the_same_tokens(pretrained):
    tokenizer = Tokenizer(pretrained, 32)
    blocks = [[f"text {block} number {row} of words" for row in range(400)] for block in range(8)]
    want = [tokenizer(block) for block in blocks]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(tokenizer, blocks * 4))
    assert all(equal(one, other) for one, other in zip(got, want * 4, strict=True))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"spans": True}, "spans of tokens"),
        ({"fast": False}, "fast_tokenizer is false"),
        ({"windows": True, "prompt": "query: "}, "spans of tokens"),
        ({"max_tokens": 2}, "no room for text in 2 tokens"),
    ],
)
def test_what_only_tokenizers_has_uses_it_with_the_reason(pretrained, options, reason):
    tokenizer = Tokenizer(pretrained, **{"max_tokens": 8, **options})
    assert tokenizer.description.startswith("tokenizers ")
    assert tokenizer.description.endswith(reason)


def test_token_types_and_other_models_use_tokenizers(minilm):
    odd = AutoTokenizer.from_pretrained(minilm)
    odd.backend_tokenizer.post_processor = TemplateProcessing("$A:1 [SEP]:1", special_tokens=[("[SEP]", 102)])
    assert Tokenizer(odd, 8).description.endswith("types of tokens")
    odd = AutoTokenizer.from_pretrained(minilm)
    odd.backend_tokenizer.model = WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    assert Tokenizer(odd, 8).description.endswith("its words depend on their neighbours")


def test_added_tokens_with_every_option_are_compared_when_the_tokenizer_is_made(minilm):
    added = AutoTokenizer.from_pretrained(minilm)
    added.add_tokens(
        [AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True), AddedToken("<w>", single_word=True)]
    )
    tokenizer = Tokenizer(added, 64)
    assert tokenizer.description.startswith("nanotoken ")
    assert (
        tokenizer(["a  <left> b <right>  c<w> <w>d"]).input_ids.tolist()
        == added("a  <left> b <right>  c<w> <w>d")["input_ids"]
    )


def test_difference_when_the_tokenizer_is_made_uses_tokenizers(minilm, monkeypatch):
    monkeypatch.setattr(NanotokenWordPiece, "encode", other_ids)
    late = AutoTokenizer.from_pretrained(minilm)
    late.add_tokens([AddedToken("late")])
    tokenizer = Tokenizer(late, 8)
    assert "nanotoken 0.1.0 gives the ids" in tokenizer.description
    assert tokenizer(["the late one"]).input_ids.tolist() == late("the late one")["input_ids"]


def test_difference_in_a_block_fails_and_shows_the_text_and_both_ids(pretrained, monkeypatch):
    tokenizer = Tokenizer(pretrained, 8)
    monkeypatch.setattr(NanotokenWordPiece, "encode", other_ids)
    with pytest.raises(RunError, match=r"about text 1 of a block: .*\[101, 2398, 102\].*'late'.*\[101, 2397, 102\]"):
        tokenizer(["early", "late"])
