"""Features that checkpoints declare, against sentence-transformers 6 with one text at a time."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from tests.bge_m3_checkpoint import bge_m3_folder, bge_m3_vectors
from tests.declarations import change
from tests.declared_checkpoints import (
    CLUSTERED,
    PUNCTUATION,
    SHAPES,
    TEXTS,
    expected_vectors,
    load_model,
    run_conversion,
)
from tests.tiny_bodies import MAX_TOKENS, Bodies
from varve.config.model import Model
from varve.encoder.encoder import Encoder
from varve.errors import JobError

TOLERANCE = 5e-6  # of the largest value
ALL = [(shape, role) for shape in SHAPES for role in SHAPES[shape].roles]
SHORT = [text for text in TEXTS if len(text) < 30]  # that fit one window, and the length of queries
# Queries whose added tokens are not attended to.
UNATTENDED = {
    "MultiVectorEncoder",
    CLUSTERED,
    "PyLate with expansion",
    "PyLate with markers outside of the vocabulary",
} | {"Stanford's ColBERT"}


def encoder_of(folder: str, features=None, **model) -> Encoder:
    return Encoder(Model.model_validate({"name": folder, **model}), features, device="cpu")


def vectors_of(columns, family: str, width: int, name: str = "embedding") -> list[np.ndarray]:
    """The vectors of a feature; sparse ones as vectors of the whole vocabulary."""
    if family != "sparse":
        return list(columns[name])
    vectors = []
    for ids, weights in zip(columns[f"{name}_ids"], columns[f"{name}_weights"], strict=True):
        assert (np.diff(ids) > 0).all()
        assert (weights > 0).all()
        vectors.append(np.zeros(width, np.float32))
        vectors[-1][ids] = weights
    return vectors


def assert_close(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    largest = max(np.abs(vector).max(initial=0) for vector in want)
    for row, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape, row
        assert np.abs(a - b).max(initial=0) <= TOLERANCE * largest, row


def check(folder: str, shape: str, role: str, texts=TEXTS, **model) -> Encoder:
    """Compare the default feature with sentence-transformers."""
    family = SHAPES[shape].family
    encoder = encoder_of(folder, role=role, **model)
    want = expected_vectors(folder, family, role, texts)
    assert_close(vectors_of(encoder(list(texts)), family, want[0].shape[-1]), want)
    return encoder


@pytest.mark.parametrize(("shape", "role"), ALL)
def test_default_feature_equals_sentence_transformers(shape, role, declared):
    encoder = check(declared(shape), shape, role)
    assert (encoder.layout == "dense") == (role == "query" and shape in UNATTENDED)


@pytest.mark.parametrize(
    ("shape", "role"),
    [
        ("pooling mean, cls and max concatenated", "none"),
        ("pooling mean_sqrt_len_tokens", "none"),
        ("pooling weightedmean without the prompt", "query"),
        ("two Dense, LayerNorm and Normalize", "none"),
        ("Router with two bodies", "query"),
        ("SPLADE max", "none"),
        ("SPLADE sum", "none"),
        ("SPLADE without inference for queries", "document"),
        ("MultiVectorEncoder", "document"),
        ("MultiVectorEncoder", "query"),
        ("MultiVectorEncoder with attended expansion", "query"),
    ],
)
def test_default_feature_equals_sentence_transformers_if_texts_are_padded(shape, role, declared):
    assert check(declared(shape, "deberta-v2"), shape, role).layout == "dense"


@pytest.mark.parametrize(
    ("shape", "role"),
    [
        ("pooling mean, cls and max concatenated", "none"),
        ("pooling lasttoken", "none"),
        ("pooling weightedmean without the prompt", "query"),
        ("two Dense, LayerNorm and Normalize", "none"),
        ("SPLADE sum", "none"),
        ("SPLADE with max_active_dims", "none"),
        ("SPLADE without inference for queries", "query"),
        ("MultiVectorEncoder", "document"),
        ("PyLate with expansion", "query"),
    ],
)
def test_texts_of_one_window_have_the_vectors_of_sentence_transformers(shape, role, declared):
    check(declared(shape), shape, role, SHORT, long_text={"window": MAX_TOKENS})


LONG = [TEXTS[3]]
WINDOWS = {"window": 16, "stride": 4}


def outputs_of_windows(folder: str, family: str, modules: int | None = None) -> list[dict[str, torch.Tensor]]:
    """What the first modules of sentence-transformers return for each window of the long text."""
    options = {"max_length": WINDOWS["window"], "stride": WINDOWS["stride"]}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    windows = tokenizer(LONG[0], truncation=True, return_overflowing_tokens=True, **options)
    outputs = []
    for ids, types in zip(windows["input_ids"], windows["token_type_ids"], strict=True):
        values = {"input_ids": [ids], "token_type_ids": [types], "attention_mask": [[1] * len(ids)]}
        features = {name: torch.tensor(value) for name, value in values.items()} | {"modality": "text"}
        with torch.inference_mode():
            for module in list(load_model(folder, family))[:modules]:
                features = module(features)
        outputs.append(features)
    assert len(outputs) > 3
    return outputs


@pytest.mark.parametrize("shape", ["two Dense, LayerNorm and Normalize", "pooling mean, cls and max concatenated"])
def test_dense_windows_are_pooled_by_their_tokens_before_the_steps_of_the_row(shape, declared):
    folder = declared(shape)
    outputs = outputs_of_windows(folder, "dense", 2)
    vectors = torch.cat([output["sentence_embedding"] for output in outputs])
    weights = torch.tensor([output["input_ids"].shape[1] for output in outputs])[:, None]
    row = (vectors * weights).sum(0) / weights.sum()
    if vectors.shape[1] == 96:  # the third part is the maximum
        row[64:] = vectors[:, 64:].max(0).values
    features = {"sentence_embedding": row[None]}
    with torch.inference_mode():
        for module in list(load_model(folder, "dense"))[2:]:
            features = module(features)
    columns = encoder_of(folder, long_text=WINDOWS)(LONG)
    assert_close(vectors_of(columns, "dense", 0), [features["sentence_embedding"][0].numpy()])


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_sparse_windows_are_combined_by_the_strategy(strategy, declared):
    folder = declared(f"SPLADE {strategy}")
    vectors = torch.cat([o["sentence_embedding"] for o in outputs_of_windows(folder, "sparse")])
    want = vectors.max(0).values if strategy == "max" else vectors.sum(0)
    columns = encoder_of(folder, long_text=WINDOWS)(LONG)
    assert_close(vectors_of(columns, "sparse", len(want)), [want.numpy()])


def test_late_interaction_keeps_the_tokens_of_all_windows(declared):
    folder = declared("PyLate without expansion")
    outputs = outputs_of_windows(folder, "late")
    kept = [output["token_embeddings"][0][output["attention_mask"][0].bool()] for output in outputs]
    columns = encoder_of(folder, long_text=WINDOWS)(LONG)
    assert_close(vectors_of(columns, "late", 8), [torch.cat(kept).numpy()])


@pytest.mark.parametrize("shape", ["MultiVectorEncoder", "PyLate without expansion", "Stanford's ColBERT"])
def test_late_interaction_drops_punctuation_of_documents(shape, declared):
    folder = declared(shape)
    columns = encoder_of(folder, role="document")([PUNCTUATION, "a, b"])
    assert_close(vectors_of(columns, "late", 8), expected_vectors(folder, "late", "document", [PUNCTUATION, "a, b"]))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = [tokenizer.convert_ids_to_tokens(columns["embedding_input_ids"][row].tolist()) for row in range(2)]
    assert (names[0][0], names[0][-1]) == ("[CLS]", "[SEP]")
    assert not set(names[0]) & set(PUNCTUATION)
    assert names[1][-3:] == ["a", "b", "[SEP]"]
    assert columns["embedding_offsets"][1][-3:-1].tolist() == [[0, 1], [3, 4]]


def test_text_without_kept_tokens_gives_an_empty_list(declared, tmp_path):
    folder = shutil.copytree(declared("MultiVectorEncoder"), tmp_path / "model")
    config = folder / "2_MultiVectorMask/config.json"
    words = [*PUNCTUATION, "[CLS]", "[SEP]", "[", "]", "d"]  # and the tokens of the prompt
    config.write_text(json.dumps({"skiplist_words": words}))
    texts = [PUNCTUATION, "a word", ""]
    columns = encoder_of(str(folder), role="document")(texts)
    want = expected_vectors(str(folder), "late", "document", texts)
    assert [len(vectors) for vectors in want] == [0, 2, 0]
    assert_close(vectors_of(columns, "late", 8), want)
    assert [len(columns["embedding_input_ids"][row]) for row in range(3)] == [0, 2, 0]


def test_all_kinds_of_vectors_of_one_pass_equal_those_of_each_alone(declared, tmp_path):
    folder = shutil.copytree(declared("SPLADE max"), tmp_path / "model")
    torch.manual_seed(0)
    save_file({"weight": torch.randn(8, 32), "bias": torch.randn(8)}, folder / "colbert_linear.safetensors")
    features = {
        "sparse": "declared",
        "sum": "splade+strategy=sum",
        "late": "colbert_linear",
        "dense": "mean+normalize",
        "cls": "cls@all",
        "tokens": "tokens@1",
    }
    together = encoder_of(str(folder), features, max_tokens=MAX_TOKENS)(list(TEXTS))
    alone = {}
    for name, feature in features.items():
        alone |= encoder_of(str(folder), {name: feature}, max_tokens=MAX_TOKENS)(list(TEXTS))
    assert together.keys() == alone.keys()
    assert {"sparse_ids", "sum_weights", "late_input_ids", "late_offsets", "dense", "cls_00", "cls_02"} <= alone.keys()
    for name, values in alone.items():
        for row in range(len(TEXTS)):
            assert np.array_equal(together[name][row], values[row]), (name, row)
    want = expected_vectors(str(folder), "sparse", "none", TEXTS)
    assert_close(vectors_of(together, "sparse", len(want[0]), "sparse"), want)


def test_three_outputs_of_bge_m3_come_from_one_pass_after_the_printed_conversion(minilm, tmp_path):
    folder = bge_m3_folder(Bodies(tmp_path, minilm))
    features = {"dense": "declared", "sparse": "sparse_linear", "late": "colbert_linear"}
    for stem in ("sparse_linear", "colbert_linear"):
        with pytest.raises(JobError, match=rf"the weights in {stem}\.pt are pickled") as error:
            encoder_of(str(folder), features)
        run_conversion(str(error.value))
    columns = encoder_of(str(folder), features)(list(TEXTS))
    want = [bge_m3_vectors(str(folder), text) for text in TEXTS]
    dense, sparse, late = map(list, zip(*want, strict=True))
    assert sum(np.count_nonzero(weights) for weights in sparse) > 20
    assert_close(vectors_of(columns, "dense", 32, "dense"), dense)
    assert_close(vectors_of(columns, "sparse", len(sparse[0]), "sparse"), sparse)
    assert_close(vectors_of(columns, "late", 32, "late"), late)


SETTINGS, TEXT = "config_sentence_transformers.json", "sentence_bert_config.json"
NOTHING = {"module_input_name": "sentence_embedding", "module_output_name": ...}  # is normalized
MINIMUM = {"strategy": "min", "length": 16, "attend": False}


@pytest.mark.parametrize(
    ("shape", "role", "file", "changes"),
    [
        ("prompts without a default", "document", SETTINGS, {"prompts": {"query": "query: ", "passage": "passage: "}}),
        ("prompts without a default", "none", SETTINGS, {"prompts": {"a": "text: "}, "default_prompt_name": "a"}),
        ("pooling mean", "none", TEXT, {"max_seq_length": 20}),
        ("pooling mean, cls and max concatenated", "none", "1_Pooling/config.json", {"pooling_mode": ["max", "cls"]}),
        ("Router with two bodies", "none", "router_config.json", {"parameters": {"default_route": "query"}}),
        ("MultiVectorEncoder", "query", TEXT, {"query_expansion": MINIMUM, "query_length": 20}),
        ("MultiVectorEncoder", "query", TEXT, {"query_expansion": MINIMUM | {"token": "the", "attend": True}}),
        ("MultiVectorEncoder", "query", TEXT, {"query_expansion": None, "query_length": 9}),
        ("MultiVectorEncoder", "query", "2_MultiVectorMask/config.json", {"skiplist_tasks": ["query"]}),
        ("MultiVectorEncoder", "document", "2_MultiVectorMask/config.json", {"keep_only_token_ids": [1037, 1012]}),
        ("MultiVectorEncoder", "document", "3_Normalize/config.json", NOTHING),
        ("PyLate with expansion", "query", SETTINGS, {"model_type": ...}),
        ("PyLate with expansion", "query", SETTINGS, {"query_length": ..., "attend_to_expansion_tokens": True}),
        ("PyLate with expansion", "document", SETTINGS, {"skiplist_words": ["a"], "prompts": {"document": "text "}}),
        ("PyLate without expansion", "query", TEXT, {"query_length": 7}),
        ("Stanford's ColBERT", "document", "artifact.metadata", {"doc_maxlen": ..., "mask_punctuation": False}),
        ("Stanford's ColBERT", "query", "artifact.metadata", {"query_token_id": "[unused5]", "query_maxlen": 30}),
    ],
)
def test_changed_files_change_the_vectors_as_in_sentence_transformers(shape, role, file, changes, declared, tmp_path):
    folder = shutil.copytree(declared(shape), tmp_path / "model")
    change(folder / file, **changes)
    check(str(folder), shape, role)


@pytest.mark.parametrize(("shape", "prompt"), [("pooling mean", "query: "), ("MultiVectorEncoder", "")])
def test_prompt_of_the_job_replaces_the_declared_one(shape, prompt, declared):
    folder, family = declared(shape), SHAPES[shape].family
    model = load_model(folder, family)
    columns = encoder_of(folder, role="query", prompt=prompt)(SHORT)
    want = [model.encode_query([text], prompt=prompt)[0] for text in SHORT]
    assert_close(vectors_of(columns, family, 0), [torch.as_tensor(vector).numpy() for vector in want])


def test_unknown_module_is_refused_unless_the_job_names_other_features(declared, tmp_path):
    folder = shutil.copytree(declared("pooling mean"), tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_CNN", "type": "sentence_transformers.models.CNN"})
    (folder / "modules.json").write_text(json.dumps(modules))
    for features, options in ((None, {}), ({"e": "declared"}, {}), ({"e": "mean"}, {"role": "query", "prompt": "q: "})):
        with pytest.raises(JobError, match=r"modules\.json has the module sentence_transformers\.models\.CNN"):
            encoder_of(str(folder), features, **options)
    got = encoder_of(str(folder), {"embedding": "mean"}, max_tokens=MAX_TOKENS)(list(TEXTS))
    assert_close(vectors_of(got, "dense", 0), expected_vectors(declared("pooling mean"), "dense", "none", TEXTS))
