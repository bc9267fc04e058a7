"""Every pooling of every layer, compared with plain transformers."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tests.models import (
    ARCHITECTURES,
    EVERYTHING,
    PACKED,
    RAGGED,
    TOLERANCE,
    leave_all_to_torch,
    worst_difference,
)
from varve.config.feature import Feature
from varve.config.model import Model
from varve.encoder.encoder import Encoder
from varve.errors import JobError
from varve.preprocessing.text_blocks import tokenize_block


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_pooling_of_every_layer_equals_plain_transformers(architecture, compiled, tiny, plain, monkeypatch):
    if not compiled:
        leave_all_to_torch(monkeypatch)
    folder = tiny(architecture)
    encoder = Encoder(Model(name=folder, max_tokens=128), EVERYTHING, device="cpu")
    outputs = [plain(folder)(text) for text in RAGGED]
    assert len(outputs[0].hidden_states) == 4
    worst = worst_difference(encoder(RAGGED), outputs)
    assert max(worst.values()) <= TOLERANCE, worst
    assert (encoder.layout == "packed") == (architecture in PACKED)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
def test_every_pooling_of_the_real_minilm_equals_plain_transformers(compiled, minilm, plain, monkeypatch):
    if not compiled:
        leave_all_to_torch(monkeypatch)
    encoder = Encoder(Model(name=minilm, max_tokens=128), EVERYTHING, device="cpu")
    worst = worst_difference(encoder(RAGGED), [plain(minilm)(text) for text in RAGGED])
    assert max(worst.values()) <= TOLERANCE, worst
    assert encoder.layout == "packed"


def test_model_that_pads_by_itself_equals_plain_transformers(tiny, plain):
    folder = tiny("longformer")
    columns = Encoder(Model(name=folder, max_tokens=128), EVERYTHING, device="cpu")(RAGGED)
    worst = worst_difference(columns, [plain(folder)(text) for text in RAGGED])
    assert max(worst.values()) <= TOLERANCE, worst


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attentions_with_other_features_equal_plain_transformers(architecture, tiny, plain):
    folder = tiny(architecture)
    features = {"attn": Feature(pool="attentions", layers="all"), "mean": Feature(pool="mean")}
    encoder = Encoder(Model(name=folder, max_tokens=128), features, device="cpu")
    columns = encoder(RAGGED)
    for row, text in enumerate(RAGGED):
        output = plain(folder)(text, output_attentions=True)
        tokens = output.hidden_states[0].shape[1]
        for layer, weights in enumerate(output.attentions, 1):
            got = columns[f"attn_{layer:02d}"][row].reshape(4, tokens, tokens)
            assert np.abs(got - weights[0].numpy()).max() <= TOLERANCE
        assert np.abs(columns["mean"][row] - output.hidden_states[-1][0].mean(0).numpy()).max() <= TOLERANCE


def test_the_known_sentence_gives_its_known_ids_and_shapes(tiny, plain):
    folder = tiny("bert")
    features = {
        "pooler": Feature(pool="pooler"),
        "tokens": Feature(pool="tokens", special_tokens=True),
        "cls": Feature(pool="cls", layers="all"),
    }
    columns = Encoder(folder, features, device="cpu")([RAGGED[0]])
    assert columns["input_ids"][0].tolist() == [101, 2182, 2003, 2070, 3793, 2000, 4372, 16044, 102]
    assert columns["tokens"][0].shape == (9, 32)
    assert {"cls_00", "cls_01", "cls_02", "cls_03"} <= columns.keys()
    model = plain(folder).model
    cls = torch.from_numpy(columns["cls_03"][0])
    with torch.inference_mode():
        want = torch.tanh(model.pooler.dense.weight @ cls + model.pooler.dense.bias)
    assert np.abs(columns["pooler"][0] - want.numpy()).max() <= TOLERANCE


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "deberta-v2"])
def test_sentence_pairs_equal_plain_transformers(architecture, tiny, plain):
    folder = tiny(architecture)
    features = {"mean": Feature(pool="mean"), "tokens": Feature(pool="tokens", special_tokens=True)}
    pairs = [("A man eats.", "Somebody is eating something."), ("", "x"), ("premise " * 90, "hypothesis " * 60)]
    columns = Encoder(Model(name=folder, max_tokens=64), features, device="cpu")(*zip(*pairs, strict=True))
    for row, pair in enumerate(pairs):
        hidden = plain(folder)(*pair, max_tokens=64).hidden_states[-1][0].numpy()
        assert np.abs(columns["tokens"][row] - hidden).max() <= TOLERANCE
        assert np.abs(columns["mean"][row] - hidden.mean(0)).max() <= TOLERANCE
    assert columns["truncated"].tolist() == [False, False, True]


def test_layers_above_the_highest_needed_are_neither_run_nor_kept(tiny, plain):
    folder = tiny("bert", num_hidden_layers=12)
    called = []

    def count(module, *_):
        called.append(type(module).__name__)

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        encoder = Encoder(folder, {"early": Feature(pool="mean", layers=2)}, device="cpu")
        called.clear()  # the comparison with eager transformers at load runs all layers
        got = encoder(RAGGED[:2])["early"]
    finally:
        handle.remove()
    # Forward hooks of the layer that ends the pass do not all run, so its attention is counted.
    assert called.count("BertSelfAttention") == 2
    full = Encoder(folder, {"late": Feature(pool="mean")}, device="cpu")
    layer = sum(parameter.numel() for parameter in plain(folder).model.encoder.layer[0].parameters())
    assert full.num_parameters - encoder.num_parameters == 10 * layer
    want = np.stack([plain(folder)(text).hidden_states[2][0].mean(0).numpy() for text in RAGGED[:2]])
    assert np.abs(got - want).max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_lower_layer_alone_equals_plain_transformers(architecture, layer, tiny, plain):
    folder = tiny(architecture)
    got = Encoder(folder, {"m": Feature(pool="mean", layers=layer)}, device="cpu")(RAGGED[:4])["m"]
    want = np.stack([plain(folder)(text).hidden_states[layer][0].mean(0).numpy() for text in RAGGED[:4]])
    assert np.abs(got - want).max() <= TOLERANCE


def test_lower_layer_of_albert_with_groups_of_layers_equals_plain_transformers(tiny, plain):
    for groups in (2, 4):
        folder = tiny("albert", num_hidden_layers=4, num_hidden_groups=groups)
        got = Encoder(folder, {"m": Feature(pool="mean", layers=2)}, device="cpu")(RAGGED[:4])["m"]
        want = np.stack([plain(folder)(text).hidden_states[2][0].mean(0).numpy() for text in RAGGED[:4]])
        assert np.abs(got - want).max() <= TOLERANCE


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_text_with_a_pad_token_equals_plain_transformers(architecture, tiny, plain):
    model = plain(folder := tiny(architecture)).model
    encoder = Encoder(folder, {"t": Feature(pool="tokens", special_tokens=True)}, device="cpu")
    tokens = encoder.tokenizer(["one two three four", "five six", "seven eight nine"])
    tokens.input_ids[[2, 3, 7, -2]] = model.config.pad_token_id or 0
    got = encoder.encode(tokens)["t"]
    for row, window in enumerate(np.split(tokens.input_ids, tokens.cu_seqlens[1:-1])):
        with torch.inference_mode():
            want = model(input_ids=torch.from_numpy(window).long()[None]).last_hidden_state[0].numpy()
        assert np.abs(got[row] - want).max() <= TOLERANCE
    assert encoder.layout == ("packed" if architecture in PACKED else "dense")


def test_encoder_in_a_process_with_another_default_dtype_equals_plain_transformers(tiny, plain):
    folder = tiny("bert")
    want = np.stack([plain(folder)(text).hidden_states[-1][0].mean(0).numpy() for text in RAGGED])
    torch.set_default_dtype(torch.float64)  # twice as large, so that wrong buffer sizes show
    try:
        got = Encoder(Model(name=folder, max_tokens=128), {"m": Feature(pool="mean")}, device="cpu")(RAGGED)["m"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.abs(got - want).max() <= TOLERANCE


def test_combined_layers_are_concatenated_summed_averaged_cut_and_normalised(tiny, plain):
    folder = tiny("bert")
    layers = (-2, -1)
    features = {
        "concat": Feature(pool="mean", layers=layers, combine="concat"),
        "sum": Feature(pool="max", layers=layers, combine="sum"),
        "mean": Feature(pool="cls", layers=layers, combine="mean"),
        "short": Feature(pool="mean", dimensions=8, normalize=True),
        "tokens": Feature(pool="tokens", layers=layers, combine="sum", special_tokens=True),
    }
    columns = Encoder(folder, features, device="cpu")([RAGGED[3]])
    below, top = (plain(folder)(RAGGED[3]).hidden_states[layer][0].numpy() for layer in layers)
    want = {
        "concat": np.concatenate([below.mean(0), top.mean(0)]),
        "sum": below.max(0) + top.max(0),
        "mean": (below[0] + top[0]) / 2,
        "short": top.mean(0)[:8] / np.linalg.norm(top.mean(0)[:8]),
        "tokens": below + top,
    }
    for name, expected in want.items():
        assert np.abs(columns[name][0] - expected).max() <= TOLERANCE, name


@pytest.mark.slow
def test_mean_and_normalize_agree_with_sentence_transformers_on_docstrings(minilm):
    from itertools import islice

    from sentence_transformers import SentenceTransformer

    from varve.cli.corpus import docstrings

    texts = [text for _, text in islice(docstrings(), 0, 1000, 4)]
    peer = SentenceTransformer(minilm, device="cpu")
    peer.max_seq_length = 256
    want = peer.encode(texts, batch_size=8, normalize_embeddings=True)
    model = Model(name=minilm, max_tokens=256)
    got = Encoder(model, {"e": Feature(pool="mean", normalize=True)}, device="cpu")(texts)["e"]
    assert (got * want).sum(axis=1).min() >= 0.999999


@pytest.fixture(scope="module")
def without_special_tokens(tiny, tmp_path_factory):
    """A checkpoint whose tokenizer has no special tokens, and one token more than its model."""
    raw = Tokenizer(WordLevel({"[UNK]": 0, "abc": 1}, unk_token="[UNK]"))
    raw.pre_tokenizer = WhitespaceSplit()
    raw.add_tokens(["<beyond>"])
    folder = shutil.copytree(tiny("bert", vocab_size=2), tmp_path_factory.mktemp("bare"), dirs_exist_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(("texts", "message"), [
    (["", "abc"], "text 0: the text has no tokens"),
    (["abc", ""], "text 1: the text has no tokens"),
    (["abc", "", "abc <beyond>"], "text 1: the text has no tokens"),
    (["abc", "abc abc", "abc <beyond>"], "text 2: the model has no embedding for its token '<beyond>'"),
])  # fmt: skip
def test_text_that_the_model_cannot_encode_is_refused_with_its_number(pool, texts, message, without_special_tokens):
    encode = Encoder(without_special_tokens, {"e": pool}, device="cpu")
    with pytest.raises(JobError, match=message):
        encode(texts)
    block = tokenize_block(encode.tokenizer, pa.table({"text": texts}), ["text"])
    assert message.partition(": ")[2] in block.reasons
    assert len(encode.encode(block.tokens)["e"]) == block.good.sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a text"], r"texts: .* pass \['a text'\]"),
        ([["a", None]], r"texts: .* NoneType at index 1"),
        ([["a"], "b"], r"pairs: .* pass \['b'\]"),
        ([["a", "b"], ["c"]], r"pairs: .* 2 texts, got 1"),
    ],
)
def test_arguments_that_are_not_lists_of_texts_are_refused(arguments, message, tiny):
    with pytest.raises(JobError, match=message):
        Encoder(tiny("bert"), device="cpu")(*arguments)


def test_wrong_short_form_of_a_feature_is_refused(tiny):
    with pytest.raises(JobError, match=r'features\.e: pool: "average" is not allowed'):
        Encoder(tiny("bert"), {"e": "average"}, device="cpu")
