"""Late chunking: which tokens and characters the chunks of a window hold."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.property.test_long_texts import TEXTS, byte_level, unigram
from varve.config.model import Chunks
from varve.preprocessing.query_expansion import QueryExpansion
from varve.preprocessing.sentences import find_sentence_ends
from varve.preprocessing.tokenizer import Tokenizer

QUICK = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=25
)
SENTENCES = st.lists(
    st.tuples(st.sampled_from(["one", "two three", "a b c d e f g h i", "日本語", "x.y"]), st.sampled_from(".!?。\n,"))
    .map("".join)
    .map(lambda sentence: sentence + " "),
    max_size=20,
).map("".join)


@pytest.fixture(scope="module")
def pretrained(minilm):
    return {"wordpiece": AutoTokenizer.from_pretrained(minilm), "bytes": byte_level(), "unigram": unigram()}


def chunks_of(tokens, window) -> list[tuple[int, int]]:
    """Tokens [first, stop) of a window's chunks, as indices into all tokens."""
    chunks = tokens.chunk_tokens[tokens.cu_chunks[window] : tokens.cu_chunks[window + 1]]
    return [(first, stop) for first, stop in (chunks + tokens.cu_seqlens[window]).tolist()]


def text_tokens(tokens, window) -> list[int]:
    every = range(tokens.cu_seqlens[window], tokens.cu_seqlens[window + 1])
    return [at for at in every if tokens.sequence_ids[at] >= 0]


def check_spans(tokens) -> None:
    """A chunk begins with its first token and ends with its last; one without text tokens has no characters."""
    for window in range(len(tokens.lengths)):
        spans = tokens.chunk_spans[tokens.cu_chunks[window] : tokens.cu_chunks[window + 1]]
        for (first, stop), span in zip(chunks_of(tokens, window), spans.tolist(), strict=True):
            if text_tokens(tokens, window):
                assert span == [tokens.spans[first, 0], tokens.spans[stop - 1, 1]]
            else:
                assert span == [0, 0]
                assert (first, stop) == (tokens.cu_seqlens[window], tokens.cu_seqlens[window + 1])


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
@QUICK
@given(
    texts=st.lists(TEXTS, max_size=3),
    stride=st.integers(0, 3),
    size=st.integers(1, 9),
    overlap=st.integers(0, 8),
    prompt=st.sampled_from(["", "query: "]),
)
def test_chunks_of_equal_length_cover_the_text_and_share_tokens(pretrained, kind, texts, stride, size, overlap, prompt):
    chunks = Chunks(tokens=size, overlap=min(overlap, size - 1))
    options = {"windows": True, "stride": stride, "prompt": prompt, "chunks": chunks}
    tokens = Tokenizer(pretrained[kind], 20, spans=True, **options)(texts)
    for row in range(len(texts)):
        first, stop = tokens.cu_windows[row : row + 2]
        for window in range(first, stop):
            own = text_tokens(tokens, window)
            context = own[:stride] if window > first else []
            if not own:
                continue
            found = chunks_of(tokens, window)
            assert found[0][0] == own[len(context) - min(len(context), chunks.overlap)]
            assert found[-1][1] == own[-1] + 1
            assert all(stop - start == size for start, stop in found[:-1])
            assert found[-1][1] - found[-1][0] <= size
            assert all(end - start == chunks.overlap for (_, end), (start, _) in pairwise(found))
    check_spans(tokens)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
@QUICK
@given(texts=st.lists(st.one_of(SENTENCES, TEXTS), max_size=3), stride=st.integers(0, 3), size=st.integers(1, 12))
def test_chunks_of_sentences_are_as_many_whole_ones_as_fit(pretrained, kind, texts, stride, size):
    options = {"windows": True, "stride": stride, "chunks": Chunks(by="sentences", tokens=size)}
    tokens = Tokenizer(pretrained[kind], 20, spans=True, **options)(texts)
    ends, cu_ends = find_sentence_ends(texts)
    for row in range(len(texts)):
        row_ends = ends[cu_ends[row] : cu_ends[row + 1]]
        first, stop = tokens.cu_windows[row : row + 2]
        for window in range(first, stop):
            new = text_tokens(tokens, window)[stride if window > first else 0 :]
            sentences = np.searchsorted(row_ends, tokens.spans[new, 0], side="right").tolist()
            want, start = [], 0
            while start < len(new):
                end = min(start + size, len(new))
                if end < len(new):  # back to the last end of a sentence, if there is one
                    whole = [at for at in range(start + 1, end + 1) if sentences[at] != sentences[at - 1]]
                    end = whole[-1] if whole else end
                want.append((new[start], new[end - 1] + 1))
                start = end
            assert not want or chunks_of(tokens, window) == want
    check_spans(tokens)


def test_sentences_end_at_marks_before_white_space_and_at_line_breaks():
    texts = {
        "One. Two!  Three": ["One.", " Two!", "  Three"],
        'He said "no." (Really?) Yes': ['He said "no."', " (Really?)", " Yes"],
        "Version 3.11 of x.y is out... now": ["Version 3.11 of x.y is out...", " now"],
        "日本語。「はい。」次": ["日本語。", "「はい。」", "次"],
        "Title\nFirst line. \n\nSecond": ["Title\n", "First line. \n\n", "Second"],
        "": [],
        "end.": ["end."],
    }
    ends, cu_ends = find_sentence_ends(list(texts))
    for row, (text, want) in enumerate(texts.items()):
        edges = [0, *ends[cu_ends[row] : cu_ends[row + 1]].tolist()]
        edges += [len(text)] if edges[-1] < len(text) else []
        assert [text[start:stop] for start, stop in pairwise(edges)] == want


def test_sentences_of_a_text_of_marks_are_found_in_linear_time():
    for text in ("." * 500_000 + "x", ".)" * 250_000 + "x", (". " + " " * 1000) * 500 + "x"):
        find_sentence_ends([text])  # quadratic time would be hours


def test_chunks_are_the_same_without_the_spans_of_tokens(pretrained):
    options = {"windows": True, "stride": 1, "chunks": Chunks(tokens=3, overlap=1)}
    texts = ["one two three four five six seven eight nine", "", "a b"]
    spanned, plain = (Tokenizer(pretrained["wordpiece"], 8, spans=spans, **options)(texts) for spans in (True, False))
    assert plain.spans is None
    assert plain.sequence_ids is None
    assert plain.chunk_spans.tolist() == spanned.chunk_spans.tolist()
    assert plain.chunk_tokens.tolist() == spanned.chunk_tokens.tolist()
    assert plain.cu_chunks.tolist() == spanned.cu_chunks.tolist()
    assert (plain.chunk_tokens.dtype, plain.chunk_spans.dtype, plain.cu_chunks.dtype) == ("int32", "int32", "int64")
    assert plain.chunk_spans[-2:].tolist() == [[0, 0], [0, 3]]


def test_tokens_that_expand_a_window_are_in_no_chunk(pretrained):
    expansion = QueryExpansion(12, 103, attend=False)
    tokens = Tokenizer(pretrained["wordpiece"], 20, spans=True, chunks=Chunks(tokens=3), expansion=expansion)(
        ["a b c d"]
    )
    assert tokens.lengths.tolist() == [12]
    assert tokens.chunk_tokens.tolist() == [[1, 4], [4, 5]]


def test_no_texts_have_no_chunks(pretrained):
    for by in ("tokens", "sentences"):
        tokens = Tokenizer(pretrained["wordpiece"], 8, windows=True, chunks=Chunks(by=by, tokens=3))([])
        assert tokens.cu_chunks.tolist() == [0]
        assert tokens.chunk_tokens.shape == tokens.chunk_spans.shape == (0, 2)
