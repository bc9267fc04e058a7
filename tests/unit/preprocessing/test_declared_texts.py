"""Prompts, lower case, markers and query expansion give the tokens of sentence-transformers."""

import json
import pickle
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from transformers import AutoTokenizer

from tests.property.test_long_texts import byte_level
from varve.preprocessing.query_expansion import QueryExpansion
from varve.preprocessing.tokenizer import Tokenizer
from varve.preprocessing.tokens import EXPANSION, PROMPT

TEXTS = ["A short text.", "Hello, WORLD! It's fine; isn't it?", "x", "", "[unused0] as text", "The quick fox " * 20]
PUNCTUATION = list("!,.;")


@pytest.fixture(scope="module")
def cased(tiny, tmp_path_factory):
    """A tiny model whose tokenizer distinguishes upper and lower case."""
    folder = tmp_path_factory.mktemp("cased") / "model"
    shutil.copytree(tiny("bert"), folder)
    path = folder / "tokenizer_config.json"  # BertTokenizer takes its normalizer from here
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    return str(folder)


@pytest.fixture(scope="module")
def late(tiny, tmp_path_factory):
    """(expansion, markers) → a late-interaction checkpoint in PyLate's files, loaded by sentence-transformers."""

    def make(expansion: dict | None, markers: tuple[str, str] | None) -> MultiVectorEncoder:
        folder = tmp_path_factory.mktemp("late") / "model"
        transformer = Transformer(tiny("bert"), query_expansion=expansion, document_length=24, max_seq_length=32)
        at_tokens = {"module_input_name": "token_embeddings"}
        modules = [transformer, Dense(32, 8, **at_tokens), MultiVectorMask(PUNCTUATION), Normalize(**at_tokens)]
        MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
        if markers:
            path = Path(folder, "config_sentence_transformers.json")
            content = json.loads(path.read_text()) | dict(
                zip(("query_prefix", "document_prefix"), markers, strict=True)
            )
            path.write_text(json.dumps(content))
        return MultiVectorEncoder(str(folder), device="cpu")

    return make


def rows_of(tokens):
    return [tokens.input_ids[start:stop].tolist() for start, stop in pairwise(tokens.cu_seqlens)]


def test_lower_case_gives_the_tokens_of_sentence_transformers(cased):
    transformer = Transformer(cased, do_lower_case=True, max_seq_length=32)
    want = [transformer.preprocess([text])["input_ids"][0].tolist() for text in TEXTS]
    pretrained = AutoTokenizer.from_pretrained(cased)
    assert rows_of(Tokenizer(pretrained, 32, lower_case=True)(TEXTS)) == want
    assert rows_of(Tokenizer(pretrained, 32)(TEXTS)) != want  # the given tokenizer is not changed


@pytest.mark.parametrize("prompt", ["query: ", "Represent this sentence for searching:", "word [SEP]", ""])
def test_prompt_is_counted_as_sentence_transformers_counts_it(tiny, prompt):
    transformer = Transformer(tiny("bert"), max_seq_length=32)
    tokenizer = Tokenizer(AutoTokenizer.from_pretrained(tiny("bert")), 32, prompt=prompt)
    want = [transformer.preprocess([text], prompt=prompt or None) for text in TEXTS]
    assert rows_of(tokenizer(TEXTS)) == [each["input_ids"][0].tolist() for each in want]
    assert tokenizer.prompt_tokens == want[0].get("prompt_length", 0)


def test_prompt_without_a_special_token_at_its_end_is_counted_whole():
    pretrained = byte_level()
    assert Tokenizer(pretrained, 32, prompt="the ").prompt_tokens == len(pretrained("the ")["input_ids"])
    named = byte_level()
    named.add_special_tokens({"eos_token": "</s>"})
    assert Tokenizer(named, 32, prompt="the ").prompt_tokens == len(named("the ")["input_ids"]) - 1


def test_reserved_tokens_are_the_special_ones_and_the_prompt(tiny):
    pretrained = AutoTokenizer.from_pretrained(tiny("bert"))
    assert Tokenizer(pretrained, 32).reserved_tokens == 2
    assert Tokenizer(pretrained, 32, windows=True, prompt="query: ").reserved_tokens == 4


@pytest.mark.parametrize("attend", [False, True])
@pytest.mark.parametrize("strategy", ["fixed", "min"])
@pytest.mark.parametrize("markers", [("[unused0] ", "[unused1] "), ("[Q] ", "[D] "), None])
def test_queries_are_those_of_sentence_transformers(late, strategy, attend, markers):
    encoder = late({"strategy": strategy, "length": 16, "attend": attend}, markers)
    prompt = markers[0] if markers else ""
    tokenizer = Tokenizer(
        AutoTokenizer.from_pretrained(encoder[0].model.name_or_path),
        16 if strategy == "fixed" else 32,
        spans=True,
        prompt=prompt,
        expansion=QueryExpansion(16, encoder.tokenizer.mask_token_id, attend=attend),
        added_words=markers or (),
    )
    tokens = tokenizer(TEXTS)
    want = [encoder.preprocess([text], task="query", prompt=prompt or None) for text in TEXTS]
    assert rows_of(tokens) == [each["input_ids"][0].tolist() for each in want]
    added = [each["query_expansion_positions"][0].tolist() for each in want]
    assert (tokens.sequence_ids == EXPANSION).tolist() == [is_added for row in added for is_added in row]
    assert not tokens.spans[tokens.sequence_ids == EXPANSION].any()
    if attend:
        assert tokens.attended is None
    else:
        assert tokens.attended.tolist() == [int(each["attention_mask"].sum()) for each in want]
    if prompt:
        assert tokenizer.prompt_tokens == want[0]["prompt_length"]
        assert (tokens.sequence_ids == PROMPT).any()


@pytest.mark.parametrize("markers", [("[unused0] ", "[unused1] "), ("[Q] ", "[D] ")])
def test_documents_with_markers_are_those_of_sentence_transformers(late, markers):
    encoder = late(None, markers)
    pretrained = AutoTokenizer.from_pretrained(encoder[0].model.name_or_path)
    tokenizer = Tokenizer(pretrained, 24, prompt=markers[1], added_words=markers)
    want = [encoder.preprocess([text], task="document", prompt=markers[1])["input_ids"][0].tolist() for text in TEXTS]
    for each in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        assert rows_of(each(TEXTS)) == want
    assert pretrained.tokenize("[unused0]") != ["[unused0]"]  # the given tokenizer is not changed


def test_query_without_tokens_of_its_own_cannot_be_expanded_for_attention(tiny):
    pretrained = AutoTokenizer.from_pretrained(tiny("bert"))
    pretrained.backend_tokenizer.post_processor = None
    for attend, reasons in ((False, {1: "the text has no tokens"}), (True, {})):
        tokenizer = Tokenizer(pretrained, 8, expansion=QueryExpansion(4, 103, attend=attend))
        tokens = tokenizer(["a", ""])
        assert tokens.lengths.tolist() == [4, 4]
        assert tokenizer.find_unencodable(tokens) == reasons


def test_windows_that_need_no_expansion_attend_to_all_tokens(tiny):
    tokenizer = Tokenizer(
        AutoTokenizer.from_pretrained(tiny("bert")), 8, expansion=QueryExpansion(4, 103, attend=False)
    )
    assert tokenizer(["one two three"]).attended is None
    assert tokenizer(["one two three", "a"]).attended.tolist() == [5, 3]
