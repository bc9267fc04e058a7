"""Long texts in windows, and vectors with their character spans."""

import numpy as np
import pytest
import torch

from tests.models import RAGGED, TOLERANCE
from varve.config.feature import Feature
from varve.config.model import Model, Windows
from varve.encoder.encoder import Encoder
from varve.errors import JobError


def test_long_document_is_pooled_over_its_windows_by_tokens(tiny, plain):
    folder = tiny("bert")
    long = Windows(window=32, stride=8)
    features = {"mean": Feature(pool="mean"), "max": Feature(pool="max"), "cls": Feature(pool="cls", layers=1)}
    columns = Encoder(Model(name=folder, long_text=long), features, device="cpu")(RAGGED)
    reference = plain(folder)
    for row, text in enumerate(RAGGED):
        windows = reference.tokenizer(text, truncation=True, max_length=32, stride=8, return_overflowing_tokens=True)[
            "input_ids"
        ]
        with torch.inference_mode():
            states = [
                reference.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
                for ids in windows
            ]
        weights = [len(ids) for ids in windows]
        mean = np.average([state[-1][0].mean(0).numpy() for state in states], axis=0, weights=weights)
        cls = np.average([state[1][0, 0].numpy() for state in states], axis=0, weights=weights)
        largest = np.max([state[-1][0].max(0).values.numpy() for state in states], axis=0)
        assert np.abs(columns["mean"][row] - mean).max() <= TOLERANCE
        assert np.abs(columns["cls"][row] - cls).max() <= TOLERANCE
        assert np.abs(columns["max"][row] - largest).max() <= TOLERANCE
        assert columns["num_tokens"][row] == sum(weights)
    assert not columns["truncated"].any()


def test_one_vector_per_window_stays_with_its_row_and_its_characters(tiny, plain):
    folder = tiny("bert")
    long = Windows(window=32, stride=0, vectors="window")
    text = " ".join(f"word{number}" for number in range(60))
    columns = Encoder(Model(name=folder, long_text=long), {"v": Feature(pool="cls")}, device="cpu")([text, "short"])
    vectors, spans = columns["v"][0], columns["windows"][0]
    assert len(vectors) == len(spans) > 2
    assert len(columns["v"][1]) == 1
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    for vector, (start, stop) in list(zip(vectors, spans, strict=True))[:1]:
        want = plain(folder)(text[start:stop]).hidden_states[-1][0, 0].numpy()
        assert np.abs(vector - want).max() <= TOLERANCE


def test_encoder_refuses_pairs_and_attentions_of_windows_as_a_job_does(tiny):
    model = Model(name=tiny("bert"), long_text=Windows(window=8, stride=3))
    with pytest.raises(JobError, match="windows take one text, not a pair"):
        Encoder(model, device="cpu")(["a premise"], ["a hypothesis"])
    with pytest.raises(JobError, match=r"pool attentions needs model\.long_text: truncate"):
        Encoder(model, {"a": "attentions"}, device="cpu")


def test_token_vectors_come_without_special_tokens_and_with_their_characters(tiny):
    columns = Encoder(tiny("bert"), {"t": Feature(pool="tokens")}, device="cpu")([RAGGED[0], ""])
    assert columns["t"][0].shape == (7, 32)
    assert columns["t"][1].shape == (0, 32)
    words = [RAGGED[0][start:stop] for start, stop in columns["offsets"][0]]
    assert words == ["Here", "is", "some", "text", "to", "en", "code"]
