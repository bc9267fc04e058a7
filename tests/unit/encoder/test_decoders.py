"""Decoder-only models: a token's vector depends on the tokens before it, and results equal plain transformers."""

import json
import shutil

import pytest

from tests.models import EVERYTHING, RAGGED, TOLERANCE, worst_difference
from varve.config.model import Model
from varve.encoder.checkpoint.inspection import inspect_checkpoint
from varve.encoder.encoder import Encoder
from varve.errors import JobError


@pytest.mark.parametrize("token_types", [True, False])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2", "bert"])
def test_every_pooling_of_a_decoder_equals_plain_transformers(architecture, token_types, tiny, plain, tmp_path):
    """GPT-2 adds an embedding for token types of 0, so the inputs of the checkpoint's own tokenizer decide."""
    causal = {"is_decoder": True} if architecture == "bert" else {}
    folder = shutil.copytree(tiny(architecture, **causal), tmp_path / architecture)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if token_types else [])]
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config | {"model_input_names": names}))
    reference = plain(str(folder))
    assert ("token_type_ids" in reference.tokenizer("a")) == token_types
    encoder = Encoder(Model(name=str(folder), max_tokens=128), EVERYTHING, device="cpu")
    assert encoder.layout == "dense"
    worst = worst_difference(encoder(RAGGED), [reference(text) for text in RAGGED])
    assert max(worst.values()) <= TOLERANCE, worst


def test_model_with_an_encoder_and_a_decoder_is_refused_for_what_it_is(tiny, tmp_path):
    folder = shutil.copytree(tiny("bert"), tmp_path / "t5")
    config = {"model_type": "t5", "d_model": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 30522}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(JobError, match="is a t5 model, which needs two texts: an encoder with a decoder"):
        inspect_checkpoint(str(folder))
