"""Words that are encoded once give the ids of the whole text; see tests/bench/tokenizers.py for more texts."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from tests.property.test_long_texts import TEXTS, byte_level, unigram
from varve.preprocessing.word_cache import WordCache, can_cache


def metaspace():
    pretrained = unigram()
    raw = pretrained.backend_tokenizer
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = TemplateProcessing("<unk> $A <unk>", special_tokens=[("<unk>", 0)])
    raw.add_tokens([AddedToken("<mask>", lstrip=True)])
    return pretrained


@pytest.fixture(scope="module")
def caches():
    given = {"bytes": byte_level(), "unigram": unigram(), "metaspace": metaspace()}
    return {kind: (WordCache(each.backend_tokenizer), each.backend_tokenizer) for kind, each in given.items()}


def rows_of(flat):
    ids, starts = flat
    return [row.tolist() for row in np.split(ids, starts[1:-1])] if len(starts) > 1 else []


@pytest.mark.parametrize("kind", ["bytes", "unigram", "metaspace"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(texts=st.lists(TEXTS, max_size=5), max_tokens=st.integers(4, 12), side=st.sampled_from(["right", "left"]))
def test_words_encoded_once_give_the_ids_of_whole_texts(caches, kind, texts, max_tokens, side):
    cache, raw = caches[kind]
    texts = [*texts, *(f"{text}  <mask> a\n{text}" for text in texts)]
    whole = [encoding.ids for encoding in raw.encode_batch_fast(texts)]
    assert rows_of(cache.encode(texts)) == whole
    raw.enable_truncation(max_tokens, direction=side)
    cut = [encoding.ids for encoding in raw.encode_batch_fast(texts)]
    raw.no_truncation()
    assert rows_of(cache.encode(texts, max_tokens, side)) == cut


def test_cache_that_is_full_starts_again_with_the_same_ids(monkeypatch):
    raw = byte_level().backend_tokenizer
    monkeypatch.setattr("varve.preprocessing.word_cache._MAX_WORDS", 3)
    cache = WordCache(raw)
    texts = ["the quick brown fox", "jumps over the lazy dog", "the fox"]
    for text in texts * 2:
        assert rows_of(cache.encode([text])) == [raw.encode(text).ids]


def test_tokenizers_whose_words_depend_on_their_neighbours_are_not_cached():
    assert can_cache(byte_level().backend_tokenizer)
    without_split = byte_level().backend_tokenizer
    without_split.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    assert not can_cache(without_split)
    greedy = byte_level().backend_tokenizer
    greedy.add_tokens([AddedToken("<right>", rstrip=True)])
    assert not can_cache(greedy)
