import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from varve.preprocessing.tokenizer import Tokenizer

WORDS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    st.sampled_from(
        ["the", "tokenizer", "unbelievable", "x" * 150, "naïve", "日本語", "🙂🙂", "a.b,c!", "\u0301", "\x00"]
    ),
)
SPACES = st.sampled_from([" ", "  ", "\n", "\t", " \n ", "\u00a0", ""])
TEXTS = st.lists(st.tuples(WORDS, SPACES), max_size=120).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)
CORPUS = ["the quick brown fox jumps over the lazy dog", "tokenizers cut words into pieces", "naïve façade"] * 20


def byte_level() -> PreTrainedTokenizerFast:
    raw = Raw(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def unigram() -> PreTrainedTokenizerFast:
    raw = Raw(models.Unigram())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.fixture(scope="module")
def tokenizers(minilm):
    return {"wordpiece": AutoTokenizer.from_pretrained(minilm), "bytes": byte_level(), "unigram": unigram()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(text=TEXTS, max_tokens=st.integers(4, 12))
def test_text_cut_by_characters_has_the_tokens_and_the_flag_of_the_whole(tokenizers, kind, text, max_tokens):
    tokenizer = Tokenizer(tokenizers[kind], max_tokens)
    raw = tokenizers[kind].backend_tokenizer
    raw.no_padding()
    raw.enable_truncation(max_tokens)
    whole = raw.encode(text)
    cut = tokenizer([text])
    assert cut.input_ids.tolist() == whole.ids
    assert cut.truncated.tolist() == [bool(whole.overflowing)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(texts=st.lists(TEXTS, max_size=5), stride=st.integers(0, 3))
def test_windows_are_those_of_transformers(tokenizers, texts, stride):
    pretrained = tokenizers["wordpiece"]
    tokens = Tokenizer(pretrained, 12, windows=True, stride=stride)(texts)
    for row, text in enumerate(texts):
        want = pretrained(text, truncation=True, max_length=12, stride=stride, return_overflowing_tokens=True)[
            "input_ids"
        ]
        windows = range(tokens.cu_windows[row], tokens.cu_windows[row + 1])
        assert [tokens.input_ids[tokens.cu_seqlens[w] : tokens.cu_seqlens[w + 1]].tolist() for w in windows] == want
