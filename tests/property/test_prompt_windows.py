"""Windows with a prompt: the prompt in each of them, and between it and the end the pieces of `tokenizers`."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.property.test_long_texts import TEXTS, byte_level, unigram
from varve.preprocessing.tokenizer import Tokenizer
from varve.preprocessing.tokens import PROMPT, SPECIAL

PROMPTS = st.sampled_from(["query: ", "The quick passage:", "x "])
QUICK = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=25
)


@pytest.fixture(scope="module")
def pretrained(minilm):
    return {"wordpiece": AutoTokenizer.from_pretrained(minilm), "bytes": byte_level(), "unigram": unigram()}


def windows_of(tokens, row):
    starts = tokens.cu_seqlens[tokens.cu_windows[row] : tokens.cu_windows[row + 1] + 1]
    return [slice(start, stop) for start, stop in pairwise(starts)]


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
@QUICK
@given(texts=st.lists(TEXTS, max_size=3), prompt=PROMPTS, stride=st.integers(0, 3))
def test_every_window_has_the_prompt_and_its_piece_of_the_text(pretrained, kind, texts, prompt, stride):
    raw = pretrained[kind].backend_tokenizer
    raw.no_truncation()
    raw.no_padding()
    max_tokens = 24
    tokens = Tokenizer(pretrained[kind], max_tokens, windows=True, stride=stride, spans=True, prompt=prompt)(texts)
    assert not tokens.truncated.any()
    for row, text in enumerate(texts):
        whole = raw.encode(prompt + text)
        of_text = [at for at, sequence in enumerate(whole.sequence_ids) if sequence is not None]
        kept = [at for at in of_text if whole.offsets[at][1] > len(prompt)]
        head = whole.ids[: kept[0]] if kept else whole.ids[: of_text[-1] + 1]
        tail = whole.ids[of_text[-1] + 1 :]
        room, stop = max_tokens - len(head) - len(tail), 0
        for number, window in enumerate(windows_of(tokens, row)):
            first = number * (room - stride)
            stop = min(first + room, len(kept))
            piece = kept[first:stop]
            assert tokens.input_ids[window].tolist() == [*head, *(whole.ids[at] for at in piece), *tail]
            shown = tokens.spans[window][len(head) : len(head) + len(piece)].tolist()
            assert shown == [[max(0, at - len(prompt)) for at in whole.offsets[place]] for place in piece]
            sequences = tokens.sequence_ids[window].tolist()
            num_prompt = len(of_text) - len(kept)
            special = [SPECIAL] * (len(head) - num_prompt)
            assert sequences == [*special, *[PROMPT] * num_prompt, *[0] * len(piece), *[SPECIAL] * len(tail)]
        assert stop == len(kept)


@QUICK
@given(texts=st.lists(TEXTS, max_size=3), prompt=PROMPTS)
def test_text_cut_at_the_maximum_is_cut_with_its_prompt(pretrained, texts, prompt):
    raw = pretrained["wordpiece"].backend_tokenizer
    raw.no_padding()
    raw.enable_truncation(12)
    plain, spanned = (Tokenizer(pretrained["wordpiece"], 12, spans=spans, prompt=prompt) for spans in (False, True))
    tokens, with_spans = plain(texts), spanned(texts)
    want = [raw.encode(prompt + text) for text in texts]
    assert tokens.input_ids.tolist() == [token for each in want for token in each.ids]
    assert tokens.input_ids.tolist() == with_spans.input_ids.tolist()
    assert tokens.truncated.tolist() == [bool(each.overflowing) for each in want]
    offsets = [offset for each in want for offset in each.offsets]
    assert with_spans.spans.tolist() == [[max(0, at - len(prompt)) for at in offset] for offset in offsets]


def test_windows_of_a_short_prompt_and_none_cover_the_same_text(pretrained):
    text = " ".join(f"word{number}" for number in range(40))
    for prompt in ("", "query: "):
        tokens = Tokenizer(pretrained["wordpiece"], 16, windows=True, stride=2, spans=True, prompt=prompt)([text])
        covered = np.zeros(len(text), np.bool_)
        for start, stop in tokens.spans[tokens.sequence_ids >= 0]:
            covered[start:stop] = True
        assert "".join(np.array(list(text))[~covered]).strip() == ""


def test_window_without_room_for_prompt_and_stride_is_refused_for_long_texts_alone(pretrained):
    tokenizer = Tokenizer(pretrained["wordpiece"], 8, windows=True, stride=3, prompt="one two three ")
    assert tokenizer.reserved_tokens == 5
    assert tokenizer(["four five six"]).num_tokens.tolist() == [8]
    with pytest.raises(ValueError, match="a window of 8 tokens has no room"):
        tokenizer(["four five six seven"])
