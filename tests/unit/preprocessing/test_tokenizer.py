import pickle
from itertools import chain

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from varve.preprocessing.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def pretrained(minilm):
    return AutoTokenizer.from_pretrained(minilm)


def test_known_sentence_gives_its_known_ids(pretrained):
    tokens = Tokenizer(pretrained, 512)(["Here is some text to encode"])
    assert tokens.input_ids.tolist() == [101, 2182, 2003, 2070, 3793, 2000, 4372, 16044, 102]
    assert tokens.input_ids.dtype == np.int32
    assert tokens.num_tokens.tolist() == [9]


def test_pairs_have_the_token_types_of_transformers(pretrained):
    pairs = [("a premise", "a hypothesis"), ("long " * 40, "longer " * 40)]
    tokens = Tokenizer(pretrained, 32)(*zip(*pairs, strict=True))
    want = pretrained(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=32)
    assert tokens.input_ids.tolist() == list(chain.from_iterable(want["input_ids"]))
    assert tokens.token_type_ids.tolist() == list(chain.from_iterable(want["token_type_ids"]))
    assert tokens.truncated.tolist() == [False, True]


def test_single_text_has_token_types_only_if_some_are_not_0(pretrained):
    assert Tokenizer(pretrained, 32)(["a text"]).token_type_ids is None
    odd = AutoTokenizer.from_pretrained(pretrained.name_or_path)
    odd.backend_tokenizer.post_processor = TemplateProcessing(
        "[CLS]:1 $A:0 [SEP]:2", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    assert Tokenizer(odd, 32)(["a text"]).token_type_ids.tolist() == [1, 0, 0, 2]


def test_empty_text_is_its_special_tokens(pretrained):
    assert Tokenizer(pretrained, 8)([""]).input_ids.tolist() == [101, 102]


def test_no_texts_give_no_tokens(pretrained):
    tokens = Tokenizer(pretrained, 8)([])
    assert len(tokens.input_ids) == 0
    assert len(tokens.lengths) == 0


def test_padding_and_truncation_of_the_checkpoint_are_replaced(pretrained):
    assert pretrained.backend_tokenizer.truncation is not None or pretrained.backend_tokenizer.padding is not None
    tokens = Tokenizer(pretrained, 400)(["word " * 300, "word"])
    assert tokens.num_tokens.tolist() == [302, 3]


def test_text_of_millions_of_words_has_the_tokens_of_its_beginning(pretrained):
    tokenizer = Tokenizer(pretrained, 128)
    beginning, whole = (tokenizer(["a few words " * count]) for count in (1_000, 1_000_000))
    assert whole.input_ids.tolist() == beginning.input_ids.tolist()
    assert whole.truncated.tolist() == [True]


@pytest.mark.parametrize(
    "text", ["y" * 100_000, "few words then " + "y" * 100_000 + " and more " * 50, " " * 100_000 + "word", "é" * 70_000]
)
def test_very_long_word_has_the_tokens_of_tokenizers(text, pretrained):
    want = pretrained([text], truncation=True, max_length=8)["input_ids"]
    assert Tokenizer(pretrained, 8)([text]).input_ids.tolist() == want[0]


@pytest.mark.parametrize("texts", [["word and more " * 40, "short", ""], ["one two three four five six seven"]])
def test_long_text_is_truncated_on_the_side_that_the_checkpoint_defines(texts, minilm):
    left = AutoTokenizer.from_pretrained(minilm, truncation_side="left")
    want = left(texts, truncation=True, max_length=8)["input_ids"]
    assert Tokenizer(left, 8)(texts).input_ids.tolist() == list(chain.from_iterable(want))
    pairs = [text + " and a second" for text in texts]
    want = left(texts, pairs, truncation=True, max_length=8)["input_ids"]
    assert Tokenizer(left, 8)(texts, pairs).input_ids.tolist() == list(chain.from_iterable(want))


def test_windows_start_at_the_start_of_the_text_for_either_truncation_side(pretrained, minilm):
    left = AutoTokenizer.from_pretrained(minilm, truncation_side="left")
    text = ["one two three four five six seven eight nine ten"]
    want, got = (Tokenizer(kind, 8, windows=True, stride=2)(text) for kind in (pretrained, left))
    assert got.input_ids.tolist() == want.input_ids.tolist()


def test_special_token_in_a_text_is_split_if_the_checkpoint_says_so(minilm):
    split = AutoTokenizer.from_pretrained(minilm, split_special_tokens=True)
    want = split("a [SEP] b")["input_ids"]
    assert want.count(split.sep_token_id) == 1
    tokenizer = Tokenizer(split, 16)
    for each in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        assert each(["a [SEP] b"]).input_ids.tolist() == want
