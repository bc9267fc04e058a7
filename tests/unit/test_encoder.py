import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from pipeline.encoder.encoder import Encoder
from pipeline.encoder.layers import compile_layers
from pipeline.errors import JobError
from pipeline.spec import Feature, Model, Windows
from tests.models import ARCHITECTURES, PACKED, RAGGED

TOLERANCE = 2e-5  # float32, absolute: the promise of the README
POOLS = {
    "cls": lambda hidden: hidden[0],
    "last": lambda hidden: hidden[-1],
    "mean": lambda hidden: hidden.mean(0),
    "max": lambda hidden: hidden.max(0).values,
    "tokens": lambda hidden: hidden,
}
# A row's neighbours may change its last bits: the BLAS library chooses its kernels, and with them the order of sums, by
# the number of rows in a matrix. In one job a row always has the same neighbours.
NEIGHBOURS = 2e-6
EVERYTHING = {pool: Feature(pool=pool, layers="all", special_tokens=pool == "tokens") for pool in POOLS}


def worst_difference(columns, outputs) -> dict[str, float]:
    worst = dict.fromkeys(POOLS, 0.0)
    for row, output in enumerate(outputs):
        for layer, hidden in enumerate(output.hidden_states):
            for pool, by in POOLS.items():
                got, want = columns[f"{pool}_{layer:02d}"][row], by(hidden[0]).numpy()
                assert got.shape == want.shape
                worst[pool] = max(worst[pool], float(np.abs(got - want).max()))
    return worst


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_pooling_of_every_layer_equals_plain_transformers(architecture, tiny, plain):
    folder = tiny(architecture)
    encoder = Encoder(Model(name=folder, max_tokens=128), EVERYTHING, device="cpu")
    outputs = [plain(folder)(text) for text in RAGGED]
    assert len(outputs[0].hidden_states) == 4
    worst = worst_difference(encoder(RAGGED), outputs)
    assert max(worst.values()) <= TOLERANCE, worst
    assert (encoder.layout == "packed") == (architecture in PACKED)


def test_every_pooling_of_every_layer_of_the_real_minilm_equals_plain_transformers(minilm, plain):
    encoder = Encoder(Model(name=minilm, max_tokens=128), EVERYTHING, device="cpu")
    worst = worst_difference(encoder(RAGGED), [plain(minilm)(text) for text in RAGGED])
    assert max(worst.values()) <= TOLERANCE, worst
    assert encoder.layout == "packed"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attentions_beside_other_features_equal_plain_transformers(architecture, tiny, plain):
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


@pytest.mark.parametrize("architecture", ["bert", "roberta", "albert", "mpnet"])
def test_pooler_equals_plain_transformers(architecture, tiny, plain):
    folder = tiny(architecture)
    got = Encoder(Model(name=folder, max_tokens=128), {"p": Feature(pool="pooler")}, device="cpu")(RAGGED)["p"]
    want = np.stack([plain(folder)(text).pooler_output[0].numpy() for text in RAGGED])
    assert np.abs(got - want).max() <= TOLERANCE


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "xlm-roberta"])
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


def test_layers_above_the_highest_asked_for_are_neither_run_nor_kept(tiny, plain):
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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_lower_layer_alone_equals_plain_transformers(architecture, layer, tiny, plain):
    folder = tiny(architecture)
    got = Encoder(folder, {"m": Feature(pool="mean", layers=layer)}, device="cpu")(RAGGED[:4])["m"]
    want = np.stack([plain(folder)(text).hidden_states[layer][0].mean(0).numpy() for text in RAGGED[:4]])
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


def test_token_vectors_come_without_special_tokens_and_with_their_characters(tiny):
    columns = Encoder(tiny("bert"), {"t": Feature(pool="tokens")}, device="cpu")([RAGGED[0], ""])
    assert columns["t"][0].shape == (7, 32)
    assert columns["t"][1].shape == (0, 32)
    words = [RAGGED[0][start:stop] for start, stop in columns["offsets"][0]]
    assert words == ["Here", "is", "some", "text", "to", "en", "code"]


def test_mean_and_normalize_agree_with_sentence_transformers_on_1000_docstrings(minilm):
    from itertools import islice

    from sentence_transformers import SentenceTransformer

    from jobs.corpus import docstrings

    texts = [text for _, text in islice(docstrings(), 1000)]
    peer = SentenceTransformer(minilm, device="cpu")
    peer.max_seq_length = 256
    want = peer.encode(texts, batch_size=8, normalize_embeddings=True)
    model = Model(name=minilm, max_tokens=256)
    got = Encoder(model, {"e": Feature(pool="mean", normalize=True)}, device="cpu")(texts)["e"]
    assert (got * want).sum(axis=1).min() >= 0.999999


def test_model_whose_batches_differ_from_single_texts_is_refused(tiny, monkeypatch):
    from pipeline.encoder import gate

    monkeypatch.setattr(gate, "TOLERANCE", 0.0)  # nothing is exact enough: what a wrong model looks like to the gate
    with pytest.raises(JobError, match="differs from one text at a time"):
        Encoder(tiny("deberta-v2"), {"m": Feature(pool="mean")}, device="cpu")


def test_wrong_short_form_of_a_feature_is_refused(tiny):
    with pytest.raises(JobError, match=r'features\.e: pool: "average" is not allowed'):
        Encoder(tiny("bert"), {"e": "average"}, device="cpu")


def test_hub_id_is_fetched_at_the_commit_that_it_is_pinned_to(tiny, monkeypatch):
    """Only the Hub is a stand-in: it answers with a commit, and the files must be asked for at that commit."""
    from types import SimpleNamespace

    from pipeline.encoder import load

    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, "*.bin" in allow_patterns))
        return tiny("bert")

    monkeypatch.setattr(
        load, "HfApi", lambda: SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    )
    monkeypatch.setattr(load, "snapshot_download", download)
    checkpoint = load.look_at("someone/model", "main")
    assert checkpoint.commit == "c0ffee"
    assert asked == [("someone/model", "c0ffee", False)]


def test_half_precision_stays_near_float32(minilm):
    features = {"e": Feature(pool="mean", normalize=True)}
    exact = Encoder(Model(name=minilm), features, device="cpu")(RAGGED)["e"]
    half = Encoder(Model(name=minilm, dtype="bfloat16"), features, device="cpu")(RAGGED)["e"]
    assert half.dtype == np.float32
    assert np.linalg.norm(half - exact, axis=1).max() < 3e-2


def test_checkpoint_without_safetensors_is_refused(tiny, tmp_path):
    import shutil
    from pathlib import Path

    folder = tmp_path / "pickled"
    shutil.copytree(tiny("bert"), folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, Path(folder) / "pytorch_model.bin")
    with pytest.raises(JobError, match="no safetensors weights"):
        Encoder(str(folder), {"m": Feature(pool="mean")}, device="cpu")


def test_checkpoint_with_missing_weights_is_refused(tiny, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "torn"
    shutil.copytree(tiny("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(JobError, match="they would be random"):
        Encoder(str(folder), {"m": Feature(pool="mean")}, device="cpu")


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
                assert np.abs(got.astype(np.float64) - want).max(initial=0) <= NEIGHBOURS, (name, row)


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


def test_identical_texts_are_encoded_once_and_stand_in_every_row(tiny):
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
            assert np.abs(want.astype(np.float64) - alone).max() <= NEIGHBOURS, (name, row)


def test_identical_pairs_with_other_borders_are_kept_apart(tiny):
    folder = tiny("bert")
    encoder = Encoder(Model(name=folder, max_tokens=128), {"e": Feature(pool="mean")}, device="cpu")
    got = encoder(["a b", "a"], ["c", "b c"])["e"]
    assert not np.array_equal(got[0], got[1])


def test_half_precision_that_overflows_is_redone_in_bfloat16(tiny):
    folder = tiny("bert", intermediate_size=40)  # of its own: its weights are changed here
    spec = Model(name=folder, max_tokens=128)
    # Weights as large as those of checkpoints that were trained in bfloat16: 1e4 * 48 terms exceed 65,504.
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.encoder.layer[1].intermediate.dense.weight *= 3e5
        model.encoder.layer[1].output.dense.weight *= 1e-2
    model.save_pretrained(folder)
    want = Encoder(spec, EVERYTHING, device="cpu")(RAGGED)
    encoder = Encoder(spec.model_copy(update={"dtype": "float16"}), EVERYTHING, device="cpu")
    encoded = encoder.start(encoder.tokenizer(RAGGED)).result()
    assert encoded.counts.overflows == len(RAGGED)
    for name in ("mean_03", "cls_03"):
        got = encoded.columns[name]
        assert np.isfinite(got).all()
        assert np.linalg.norm(got - want[name]) <= 3e-2 * np.linalg.norm(want[name])


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 3e-3), ("bfloat16", 3e-2)])
def test_half_precision_of_the_real_minilm_stays_within_its_bound_of_float32(dtype, bound, minilm):
    spec = Model(name=minilm, max_tokens=128)
    want = Encoder(spec, {"e": Feature(pool="mean")}, device="cpu")(RAGGED)["e"]
    half = Encoder(spec.model_copy(update={"dtype": dtype}), {"e": Feature(pool="mean")}, device="cpu")
    got = half(RAGGED)["e"]
    assert np.linalg.norm(got - want) <= bound * np.linalg.norm(want)


def test_compiled_layers_give_the_numbers_of_plain_ones(tiny):
    model = AutoModel.from_pretrained(tiny("bert"), attn_implementation="eager").eval()
    windows = [torch.randint(1000, 2000, (2, length)) for length in (7, 30, 12)]
    with torch.inference_mode():
        want = [model(input_ids=ids).last_hidden_state for ids in windows]
        compile_layers(model)
        for ids, expected in zip(windows, want, strict=True):
            assert (model(input_ids=ids).last_hidden_state - expected).abs().max() <= TOLERANCE
