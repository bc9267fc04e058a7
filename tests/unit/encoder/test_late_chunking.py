"""Late chunking: a window is encoded as a whole, then the tokens of each chunk are pooled."""

import numpy as np
import pytest
import torch

from tests.docstrings import docstrings
from varve.config.model import Model
from varve.encoder.encoder import Encoder

SENTENCES = {"by": "sentences", "tokens": 64}
OVERLAPPING = {"tokens": 256, "overlap": 32}


@pytest.fixture(scope="module")
def long_text() -> str:
    """About 6,000 tokens of real text."""
    return " ".join(docstrings("torch", 400))[:24_000]


@pytest.fixture(scope="module")
def long_model(tiny) -> str:
    return tiny("modernbert", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def token_vectors(long_model, long_text, plain) -> tuple[np.ndarray, torch.Tensor]:
    """Characters [start, stop) and vectors of the text's tokens, by plain transformers."""
    reference = plain(long_model)
    inputs = reference.tokenizer(long_text, return_tensors="pt", return_offsets_mapping=True)
    spans = inputs.pop("offset_mapping")[0].numpy()
    with torch.inference_mode():
        state_TH = reference.model(**inputs).last_hidden_state[0]
    assert len(spans) > 5000
    return spans[1:-1], state_TH[1:-1]


@pytest.mark.parametrize("chunk", [OVERLAPPING, SENTENCES], ids=["tokens", "sentences"])
def test_vector_of_a_chunk_is_pooled_from_the_tokens_of_its_span(chunk, long_model, long_text, token_vectors):
    model = Model(name=long_model, long_text={"window": 8192, "chunk": chunk})
    columns = Encoder(model, {"mean": "mean", "max": "max"}, device="cpu")([long_text, "Short."])
    spans, state_TH = token_vectors
    reductions = {"mean": torch.mean, "max": torch.amax}
    for number, (start, stop) in enumerate(columns["chunks"][0]):
        inside = torch.from_numpy((spans[:, 0] >= start) & (spans[:, 1] <= stop))
        for name, reduce in reductions.items():
            want = reduce(state_TH[inside], 0).numpy()
            assert np.abs(columns[name][0][number] - want).max() <= 5e-6 * max(1, np.abs(want).max())


@pytest.mark.parametrize("chunk", [OVERLAPPING, SENTENCES], ids=["tokens", "sentences"])
@pytest.mark.parametrize("window", [{"window": 8192}, {"window": 512, "stride": 64}], ids=["one window", "windows"])
def test_spans_of_chunks_cover_the_text(window, chunk, long_model, long_text):
    encode = Encoder(Model(name=long_model, long_text={**window, "chunk": chunk}), {"e": "mean"}, device="cpu")
    columns = encode([long_text])
    spans = columns["chunks"][0]
    covered = np.zeros(len(long_text), np.bool_)
    for start, stop in spans:
        covered[start:stop] = True
    assert not "".join(np.array(list(long_text))[~covered]).strip()  # only white space between chunks
    assert len(spans) == len(columns["e"][0]) > 10
    assert (np.diff(spans[:, 0]) > 0).all()


def test_chunks_of_a_text_in_one_chunk_equal_the_mean_without_special_tokens(long_model, plain):
    encode = Encoder(
        Model(name=long_model, prompt="passage: ", long_text={"window": 64, "chunk": {"tokens": 64}}), {"e": "mean"}
    )
    columns = encode(["A short text.", ""])
    state_TH = plain(long_model)("passage: A short text.").last_hidden_state[0]
    prompt = len(plain(long_model).tokenizer("passage: ")["input_ids"]) - 1
    assert np.abs(columns["e"][0] - state_TH[prompt:-1].mean(0).numpy()).max() <= 5e-6
    assert columns["chunks"][0].tolist() == [[0, 13]]
    assert columns["chunks"][1].tolist() == [[0, 0]]
    assert np.isfinite(columns["e"][1]).all()
