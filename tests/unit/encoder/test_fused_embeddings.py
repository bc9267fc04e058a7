"""The embeddings as one call of compiled code."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from varve.encoder.encoder import Encoder
from varve.encoder.kernels.cpu_library import CpuLibrary, find_cpu_library
from varve.encoder.model.fused_embeddings import FusedEmbeddings, fuse_embeddings

BUILT = [kernel for instructions in ("amx", "avx512", "avx2") if (kernel := CpuLibrary.load(instructions))]
TOLERANCE = 2e-6  # for values of about 1
FAMILIES = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "mpnet")

pytestmark = pytest.mark.skipif(not BUILT, reason="no compiled library")
each_kernel = pytest.mark.parametrize("kernel", BUILT, ids=lambda kernel: kernel.instructions)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def make(family="bert", width=48):
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 90, "max_position_embeddings": 70}
    sizes |= {"dim": width} if family == "distilbert" else {"hidden_size": width, "embedding_size": width}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **sizes)).eval()
    for parameter in model.parameters():
        parameter.normal_()
    return model


def draw(tokens=60):
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(5, 90, (1, tokens), generator=generator),
        "position_ids": torch.randint(2, 70, (1, tokens), generator=generator),
    }


@each_kernel
@pytest.mark.parametrize("width", [16, 48, 384])
def test_vectors_equal_those_of_torch_in_double(kernel, width):
    model, ids = make(width=width), draw()
    ids["token_type_ids"] = torch.arange(60)[None] % 2
    want = model.double().embeddings(**ids)
    assert fuse_embeddings(model.float(), kernel)
    got = model.embeddings(**ids)
    assert got.dtype == torch.float32
    assert float((got - want).abs().max()) <= TOLERANCE


@each_kernel
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_keeps_its_numbers(kernel, family):
    model, ids = make(family), draw()
    want = model.embeddings(**ids)
    assert fuse_embeddings(model, kernel)
    assert isinstance(model.embeddings.forward, FusedEmbeddings)
    got = model.embeddings(**ids)
    assert not torch.equal(got, want)  # the compiled code ran: its sums have another order
    assert float((got - want).abs().max()) <= TOLERANCE


@each_kernel
def test_the_bits_of_a_token_do_not_depend_on_the_others(kernel):
    model, ids = make(), draw()
    fuse_embeddings(model, kernel)
    together = model.embeddings(**ids)
    for token in range(60):
        alone = model.embeddings(**{name: each[:, token : token + 1] for name, each in ids.items()})
        assert torch.equal(alone[0, 0], together[0, token])


@each_kernel
@pytest.mark.parametrize(("name", "wrong"), [("input_ids", 90), ("input_ids", -1), ("position_ids", 70)])
def test_an_id_outside_of_its_table_is_refused(kernel, name, wrong):
    model, ids = make(), draw()
    fuse_embeddings(model, kernel)
    ids[name][0, 17] = wrong
    with pytest.raises(IndexError, match="no vector for the token id"):
        model.embeddings(**ids)


def test_other_passes_run_the_original_code():
    model, ids = make(), draw()
    padded = {"input_ids": ids["input_ids"].reshape(4, 15)}
    vectors = {"inputs_embeds": torch.randn(1, 9, 48), "position_ids": torch.arange(9)[None]}
    want = [model.embeddings(**each) for each in (padded, vectors)]
    fuse_embeddings(model, BUILT[0])
    assert all(torch.equal(model.embeddings(**x), y) for x, y in zip((padded, vectors), want, strict=True))
    assert model.to(torch.bfloat16).embeddings(**ids).dtype == torch.bfloat16


def test_other_modules_are_not_replaced():
    narrow, extended = make(width=40), make()
    extended.embeddings.projection = torch.nn.Linear(48, 48)
    assert not any(fuse_embeddings(model, BUILT[0]) for model in (narrow, extended))


@pytest.mark.skipif(find_cpu_library() is None, reason="torch's operations run instead")
def test_means_of_layer_0_equal_eager_transformers(minilm):
    texts = ["A text.", "Another one, somewhat longer than the first.", "x"]
    got = Encoder(minilm, {"e": "mean@0"}, device="cpu", threads=1)(texts)["e"]
    eager, tokenizer = AutoModel.from_pretrained(minilm), AutoTokenizer.from_pretrained(minilm)
    for text, vector in zip(texts, got, strict=True):
        hidden = eager(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[0]
        np.testing.assert_allclose(vector, hidden[0].mean(0).numpy(), atol=1e-6)
