"""Pooler output and logits."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from tests.models import ARCHITECTURES, RAGGED, TOLERANCE
from varve.config.feature import Feature
from varve.config.model import Model
from varve.encoder.encoder import Encoder
from varve.encoder.model.heads import run_head
from varve.errors import JobError


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "roberta", "albert", "mpnet", "big_bird"])
def test_pooler_equals_plain_transformers(architecture, tiny, plain):
    folder = tiny(architecture)
    got = Encoder(Model(name=folder, max_tokens=128), {"p": Feature(pool="pooler")}, device="cpu")(RAGGED)["p"]
    want = np.stack([plain(folder)(text).pooler_output[0].numpy() for text in RAGGED])
    assert np.abs(got - want).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*(name for name in ARCHITECTURES if name != "xlm-roberta"), "big_bird"])
def test_fine_tuned_checkpoint_gives_base_features_and_logits_in_one_pass(architecture, tiny, plain):
    folder = tiny(architecture, labels=3)
    features = {"logits": Feature(pool="logits"), "cls": Feature(pool="cls"), "mean": Feature(pool="mean", layers=1)}
    columns = Encoder(Model(name=folder, max_tokens=128), features, device="cpu")(RAGGED)
    assert columns["logits"].shape == (len(RAGGED), 3)
    for row, text in enumerate(RAGGED):
        output = plain(folder, AutoModelForSequenceClassification)(text)
        assert np.abs(columns["logits"][row] - output.logits[0].numpy()).max() <= TOLERANCE
        assert np.abs(columns["cls"][row] - output.hidden_states[-1][0, 0].numpy()).max() <= TOLERANCE
        assert np.abs(columns["mean"][row] - output.hidden_states[1][0].mean(0).numpy()).max() <= TOLERANCE


def test_head_on_the_mean_of_tokens_equals_plain_transformers(tiny, plain):
    folder = tiny("modernbert", labels=2, classifier_pooling="mean")
    got = Encoder(Model(name=folder, max_tokens=128), {"logits": Feature(pool="logits")}, device="cpu")(RAGGED)[
        "logits"
    ]
    reference = plain(folder, AutoModelForSequenceClassification)
    assert np.abs(got - np.stack([reference(text).logits[0].numpy() for text in RAGGED])).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("architecture", "changes", "name"),
    [("eurobert", {"classifier_pooling": "late"}, "EuroBert"), ("longformer", {}, "Longformer")],
)
def test_head_on_more_than_one_vector_is_refused(architecture, changes, name, tiny):
    folder = tiny(architecture, labels=2, **changes)
    with pytest.raises(JobError, match=rf"head of {name}ForSequenceClassification reads more than one vector"):
        Encoder(folder, {"logits": Feature(pool="logits")}, device="cpu")


@pytest.mark.parametrize("architecture", ["bert", "nomic_bert"])
def test_head_whose_pooler_has_no_weights_is_refused(architecture, tiny, tmp_path):
    folder = shutil.copytree(tiny(architecture, labels=2), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({key: w for key, w in weights.items() if "pooler." not in key}, folder / "model.safetensors")
    with pytest.raises(JobError, match=r"lacks 2 weights of .*\.pooler\.dense.*; they would be random"):
        Encoder(str(folder), {"logits": Feature(pool="logits")}, device="cpu")


def test_base_weights_of_a_fine_tuned_checkpoint_are_its_own(tiny):
    folder = tiny("roberta", labels=2)
    with_head = Encoder(folder, {"logits": Feature(pool="logits"), "cls": Feature(pool="cls")}, device="cpu")
    without = Encoder(folder, {"cls": Feature(pool="cls")}, device="cpu")
    assert np.array_equal(with_head(RAGGED[:3])["cls"], without(RAGGED[:3])["cls"])


def test_pooler_of_a_checkpoint_without_one_is_refused(tiny):
    with pytest.raises(JobError, match=r"features\.p\.pool: the checkpoint has no pooler weights"):
        Encoder(tiny("roberta", labels=2), {"p": Feature(pool="pooler")}, device="cpu")


def test_logits_of_a_checkpoint_without_head_are_refused(tiny):
    with pytest.raises(JobError, match=r"no classification head"):
        Encoder(tiny("bert"), {"l": Feature(pool="logits")}, device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in {"xlm-roberta", "distilbert"}])
def test_heads_of_zero_texts(architecture, tiny):
    columns = Encoder(tiny(architecture, labels=3), {"l": Feature(pool="logits")}, device="cpu")([])
    assert columns["l"].shape == (0, 3)


def test_pooler_of_zero_texts(tiny):
    assert Encoder(tiny("bert"), {"p": Feature(pool="pooler")}, device="cpu")([])["p"].shape == (0, 32)


def test_two_threads_get_the_logits_of_their_own_vectors(tiny):
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny("roberta", labels=3)).eval()
    vectors = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = [run_head(classifier, one, None) for one in vectors]
    both, first_done = Barrier(2), Event()

    def meet(*_):
        if both.wait(timeout=60):  # both calls are prepared; then one ends before the other starts
            assert first_done.wait(timeout=60)

    classifier.register_forward_pre_hook(meet)
    classifier.register_forward_hook(lambda *_: first_done.set())

    @torch.inference_mode()
    def run(one):
        return run_head(classifier, one, None)

    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(run, vectors))
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
