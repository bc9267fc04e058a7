"""Queries of every kind of checkpoint, against sentence-transformers' `encode_query`; refusals of other checkpoints."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.declared_checkpoints import SHAPES, TEXTS, expected_vectors, load_model
from tests.outputs import column, write_output
from varve.errors import JobError
from varve.indexing.query_encoder import QueryEncoder, QueryOptions, encode_queries
from varve.indexing.rows import SparseVectors
from varve.output.run_output import Output

QUERIES = ["a short question?", "Dogs, foxes and (other) animals", "x", "lazy dog " * 60]
WINDOWS = {"window": 40, "stride": 6}


def as_lists(vectors, width: int) -> list[np.ndarray]:
    """One array per query; sparse ones as vectors of the whole vocabulary."""
    if not isinstance(vectors, SparseVectors):
        return list(vectors)
    dense = np.zeros((len(vectors), width), np.float32)
    for query in range(len(vectors)):
        dense[query, vectors.ids[query]] = vectors.weights[query]
    return list(dense)


def assert_close(got, want: list[np.ndarray]) -> None:
    largest = max(np.abs(vector).max(initial=0) for vector in want)
    for query, (one, other) in enumerate(zip(as_lists(got, want[0].shape[-1]), want, strict=True)):
        assert one.shape == other.shape, query
        assert np.abs(one - other).max(initial=0) <= 5e-6 * largest, query


@pytest.mark.parametrize("shape", SHAPES)
def test_queries_of_a_run_of_documents_equal_those_of_sentence_transformers(shape, declared, run_job):
    folder, family = declared(shape), SHAPES[shape].family
    role = "document" if "document" in SHAPES[shape].roles else "none"
    output = run_job(folder, TEXTS[:2], role=role)
    got = encode_queries(output, output.features["e"], QUERIES)
    assert_close(got, expected_vectors(folder, family, "query", QUERIES))


def test_query_of_a_run_of_windows_is_one_vector_of_the_whole_text(declared, run_job):
    folder = declared("prompts without a default")
    output = run_job(folder, TEXTS, role="document", long_text={**WINDOWS, "vectors": "window"})
    assert output.features["e"].form == "windows"
    got = encode_queries(output, output.features["e"], QUERIES[:3])
    assert_close(got, expected_vectors(folder, "dense", "query", QUERIES[:3]))


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_query_of_rounded_vectors_is_float32(dtype, minilm, run_job):
    output = run_job(minilm, TEXTS[:2], dtype=dtype)
    got = encode_queries(output, output.features["e"], QUERIES[:2])
    assert got.dtype == np.float32
    assert_close(got, expected_vectors(minilm, "dense", "query", QUERIES[:2]))


def test_mean_of_a_checkpoint_with_a_query_prompt_has_the_prompt(declared, run_job):
    folder = declared("prompts without a default")
    output = run_job(folder, TEXTS[:2], {"e": {"pool": "mean", "normalize": True}})
    got = encode_queries(output, output.features["e"], QUERIES[:3])
    assert_close(got, expected_vectors(folder, "dense", "query", QUERIES[:3]))


def test_one_layer_of_several_is_encoded(minilm, run_job, plain):
    output = run_job(minilm, TEXTS[:2], {"e": {"pool": "cls", "layers": [2, 5]}})
    got = encode_queries(output, output.features["e_05"], ["a short question?"])
    want = plain(minilm)("a short question?").hidden_states[5][0, 0].numpy()
    np.testing.assert_allclose(got[0], want, atol=2e-5)


def test_prompt_of_the_user_replaces_the_declared_one(declared, run_job):
    folder = declared("prompts without a default")
    output = run_job(folder, TEXTS[:2], role="document")
    got = encode_queries(output, output.features["e"], QUERIES[:2], QueryOptions(prompt="Question: "))
    prompted = [f"Question: {text}" for text in QUERIES[:2]]
    want = load_model(folder, "dense").encode(prompted, prompt="", show_progress_bar=False)
    assert_close(got, list(want))


def test_prompt_of_the_run_is_not_put_before_queries_and_is_remarked(minilm, run_job):
    output = run_job(minilm, TEXTS[:2], prompt="passage: ")
    encoder = QueryEncoder.open(output, [output.features["e"]], QueryOptions())
    assert_close(encoder.encode(QUERIES[:2])["e"], expected_vectors(minilm, "dense", "query", QUERIES[:2]))
    assert encoder.remark is not None
    assert "'passage: '" in encoder.remark
    assert "--query-prompt" in encoder.remark
    quiet = QueryEncoder.open(output, [output.features["e"]], QueryOptions(prompt="query: "))
    assert quiet.remark is None
    want = expected_vectors(minilm, "dense", "none", [f"query: {text}" for text in QUERIES[:2]])
    assert_close(quiet.encode(QUERIES[:2])["e"], want)


def test_changed_checkpoint_is_refused_with_both_hashes_and_found_again(declared, run_job, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(declared("two Dense, LayerNorm and Normalize"), folder)
    output = run_job(str(folder), TEXTS[:2])
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(JobError, match=rf"weights of .*: sha256 .*{output.metadata['weights_sha256']}"):
        encode_queries(output, output.features["e"], ["x"])
    got = encode_queries(output, output.features["e"], QUERIES[:2], QueryOptions(model=str(kept)))
    assert_close(got, expected_vectors(str(kept), "dense", "query", QUERIES[:2]))


def test_changed_head_is_refused(declared, run_job, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(declared("pooling mean"), folder)
    output = run_job(str(folder), TEXTS[:2])
    settings = Path(folder, "1_Pooling/config.json")
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "include_prompt": False}))
    with pytest.raises(JobError, match=r"1_Pooling/config\.json of .*: sha256"):
        encode_queries(output, output.features["e"], ["x"])


def test_missing_checkpoint_is_one_message(declared, run_job, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(declared("pooling mean"), folder)
    output = run_job(str(folder), TEXTS[:2])
    shutil.rmtree(folder)
    with pytest.raises(JobError, match="no such folder"):
        encode_queries(output, output.features["e"], ["x"])


@pytest.mark.parametrize("form", ["tokens", "attentions"])
def test_features_without_queries_are_refused(form, tiny, run_job):
    layers = {"tokens": -1, "attentions": [1]}[form]
    output = run_job(tiny("bert"), TEXTS[:2], {"e": {"pool": form, "layers": layers}})
    with pytest.raises(JobError, match=f"e holds {form}"):
        encode_queries(output, output.features["e"], ["x"])


def test_output_of_pairs_is_refused(tiny, run_job):
    source = {"text": ["doc", "text"]}
    output = run_job(tiny("bert"), TEXTS[:2], {"e": {"pool": "mean"}}, source=source)
    with pytest.raises(JobError, match="pair of doc and text"):
        encode_queries(output, output.features["e"], ["x"])


def test_output_without_a_complete_job_is_refused(tmp_path):
    path = write_output(tmp_path / "o", {column("e", 8): np.ones((3, 8), np.float32)}, {"doc": ["a", "b", "c"]})
    output = Output.open(path)
    with pytest.raises(JobError, match=r"manifest\.json"):
        encode_queries(output, output.features["e"], ["x"])
