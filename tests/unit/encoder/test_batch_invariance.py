"""A text's vectors do not depend on the other texts of a call."""

import numpy as np
import pytest

from tests.models import EVERYTHING, RAGGED
from varve.config.feature import Feature
from varve.config.model import Model
from varve.encoder.encoder import Encoder
from varve.encoder.kernels.cpu_library import find_cpu_library

# Other rows of a pack may change a row's last bits if torch multiplies: the BLAS library chooses its kernels by the
# number of rows of a matrix, and kernels differ in the order of sums. In one job a row is always in the same pack.
LAST_BITS = 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "modernbert", "mpnet", "deberta-v2"])
def test_a_text_alone_and_in_any_pack_differs_in_the_last_bits_at_most(architecture, tiny):
    folder = tiny(architecture)
    texts = [*RAGGED, *(f"{text} more" for text in RAGGED)]
    spec = Model(name=folder, max_tokens=128)
    alone = [Encoder(spec, EVERYTHING, device="cpu")([text]) for text in texts]
    for tokens_per_pack, threads in ((16, 1), (64, 2), (1024, 3)):
        encoder = Encoder(spec, EVERYTHING, device="cpu", tokens_per_pack=tokens_per_pack, threads=threads)
        together = encoder(texts)
        for row in range(len(texts)):
            for name, values in alone[row].items():
                got, want = np.asarray(together[name][row]), np.asarray(values[0])
                assert np.abs(got.astype(np.float64) - want).max(initial=0) <= LAST_BITS, (name, row)


@pytest.mark.slow
@pytest.mark.skipif(find_cpu_library() is None, reason="nothing was compiled for this machine")
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "mpnet"])
def test_a_text_alone_and_in_any_pack_has_the_same_bits_if_whole_layers_are_compiled(architecture, tiny):
    folder = tiny(architecture, hidden_size=64)  # heads of 16
    texts = [*RAGGED, *(f"{text} more" for text in RAGGED)]
    spec, features = Model(name=folder, max_tokens=128), {"e": "mean@0,1,2,3", "c": "cls@3", "t": "tokens@2"}
    alone = [Encoder(spec, features, device="cpu")([text]) for text in texts]
    for tokens_per_pack, threads in ((16, 1), (64, 2), (1024, 3)):
        together = Encoder(spec, features, device="cpu", tokens_per_pack=tokens_per_pack, threads=threads)(texts)
        for row in range(len(texts)):
            for name, values in alone[row].items():
                assert np.array_equal(together[name][row], values[0]), (name, row)


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "mpnet", "deberta-v2"])
def test_the_same_texts_have_the_same_bits_in_any_number_of_threads(architecture, tiny):
    spec = Model(name=tiny(architecture), max_tokens=128)
    texts = [*RAGGED, *(f"{text} more" for text in RAGGED)]
    one, three = (
        Encoder(spec, EVERYTHING, device="cpu", tokens_per_pack=64, threads=threads)(texts) for threads in (1, 3)
    )
    for name, values in one.items():
        for row in range(len(texts)):
            assert np.array_equal(values[row], three[name][row]), (name, row)


def test_identical_texts_are_encoded_once_and_appear_in_every_row(tiny):
    folder = tiny("bert")
    texts = ["one text", "another", "one text", "", "one text", "another"]
    encoder = Encoder(Model(name=folder, max_tokens=128), EVERYTHING, device="cpu")
    tokens = encoder.tokenizer(texts)
    encoded = encoder.start(tokens).result()
    assert encoded.counts.repeats == 3
    assert encoded.counts.packed_tokens == encoder.tokenizer(["one text", "another", ""]).lengths.sum()
    assert encoded.counts.packs == 1
    for name, values in encoded.columns.items():
        for row, text in enumerate(texts):
            want = encoded.columns[name][texts.index(text)]
            assert np.array_equal(values[row], want), (name, row)
            alone = encoder([text])[name][0]
            assert np.abs(want.astype(np.float64) - alone).max() <= LAST_BITS, (name, row)


def test_equal_texts_split_differently_into_pairs_are_distinct(tiny):
    folder = tiny("bert")
    encoder = Encoder(Model(name=folder, max_tokens=128), {"e": Feature(pool="mean")}, device="cpu")
    got = encoder(["a b", "a"], ["c", "b c"])["e"]
    assert not np.array_equal(got[0], got[1])
