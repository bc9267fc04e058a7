"""Runs of checkpoints that declare their vectors: the canary and `varve verify` pass, and find what is wrong."""

from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tests.bge_m3_checkpoint import bge_m3_folder
from tests.declared_checkpoints import CLUSTERED, PUNCTUATION, TEXTS, Bodies
from tests.finished_runs import finish
from varve import Job
from varve.errors import JobError
from varve.output.manifest import Manifest
from varve.output.part_file import write_part
from varve.planning.resolve import make_plan
from varve.storage.object_store import Storage
from varve.verification.canary import MAX_TEXT_BYTES, compare
from varve.verification.reference_model import Reference
from varve.verification.verify import verify

LONG = " ".join(f"Sentence number {number} of a long text, which has {number % 7} words more." for number in range(30))
ROWS = [*TEXTS, PUNCTUATION, "", None, LONG]
DECLARED = {"e": {"pool": "declared"}}
WINDOWS = {"window": 40, "stride": 6}


@pytest.fixture
def job_of(tmp_path):
    """Makes a job over `ROWS`."""

    def make(features: dict, dtype: str = "float32", **model) -> Job:
        source = tmp_path / "source.parquet"
        pq.write_table(pa.table({"text": ROWS}), source)
        job = {
            "source": {"dataset": "parquet", "data_files": str(source), "text": "text"},
            "model": model, "features": features, "output": {"path": str(tmp_path / "output"), "dtype": dtype},
        }  # fmt: skip
        return Job.parse(job)

    return make


@pytest.fixture
def run(job_of, tmp_path):
    """Runs a job to its end, whose canary and verification must pass."""

    def make(*args, **options) -> Manifest:
        finished = finish(job_of(*args, **options))
        assert finished.canary["passed"], finished.canary["failed"]
        assert finished.canary["rows"] >= 3  # of 10: the rows are drawn, and two have no vector
        checks = verify(str(tmp_path / "output"))
        assert [check.failures for check in checks if not check.passed] == []
        return finished

    return make


def test_rows_with_megabytes_of_text_are_not_given_to_plain_transformers(job_of, declared, monkeypatch):
    lengths = []
    monkeypatch.setattr(Reference, "vectors", _noting(Reference.vectors, lengths))
    monkeypatch.setitem(globals(), "ROWS", ["short", "y" * (MAX_TEXT_BYTES + 1), "another"])
    finished = finish(job_of(DECLARED, name=declared("two Dense, LayerNorm and Normalize")))
    assert finished.num_errors == 0
    assert finished.canary["passed"]
    assert finished.canary["rows"] == len(lengths) == 2
    assert max(lengths) < 10


def _noting(method, lengths: list[int]):
    def vectors(self, texts):
        lengths.append(len(texts[0]))
        return method(self, texts)

    return vectors


def worst(finished: Manifest) -> dict[str, float]:
    return {name: figures["relative"] for name, figures in finished.canary["features"].items()}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("two Dense, LayerNorm and Normalize", "none"),
        ("pooling weightedmean without the prompt", "query"),
        ("pooling mean, cls and max concatenated", "none"),
        ("SPLADE sum", "none"),
        ("SPLADE with max_active_dims", "none"),
        ("SPLADE without inference for queries", "query"),
        ("MultiVectorEncoder with attended expansion", "query"),
        ("PyLate with expansion", "query"),
        ("Stanford's ColBERT", "document"),
        (CLUSTERED, "document"),
    ],
)
def test_run_passes_its_canary(run, declared, name, role):
    assert all(difference <= 5e-6 for difference in worst(run(DECLARED, name=declared(name), role=role)).values())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *product(["prompts with a default", "MultiVectorEncoder"], ["float16", "int8", "binary"]),
        *product([CLUSTERED], ["float16", "int8"]),
    ],
)
def test_rounded_run_passes_its_canary(run, declared, name, dtype):
    run(DECLARED, dtype, name=declared(name), role="document")


def test_signs_of_clustered_tokens_are_refused(run, declared):
    with pytest.raises(JobError, match="binary is not allowed with token pooling"):
        run(DECLARED, "binary", name=declared(CLUSTERED), role="document")


@pytest.mark.parametrize(
    "chunk", [None, {"tokens": 8}, {"tokens": 10, "overlap": 3}, {"by": "sentences", "tokens": 12}]
)
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_run_of_windows_and_chunks_passes_its_canary(run, declared, chunk, prompt):
    features = {**DECLARED, "m": {"pool": "mean", "layers": [0, 1]}, "x": {"pool": "max"}, "t": {"pool": "tokens"}}
    long_text = WINDOWS | ({"chunk": chunk} if chunk else {})
    finished = run(features, name=declared("two Dense, LayerNorm and Normalize"), prompt=prompt, long_text=long_text)
    assert all(difference <= 5e-6 for difference in worst(finished).values())


@pytest.mark.parametrize(
    "name", ["pooling mean without the prompt", "SPLADE max", "SPLADE sum", "PyLate without expansion"]
)
@pytest.mark.parametrize("vectors", ["row", "window"])
def test_run_of_windows_with_other_heads_passes_its_canary(run, declared, name, vectors):
    finished = run(DECLARED, name=declared(name), prompt="search: ", long_text=WINDOWS | {"vectors": vectors})
    assert all(difference <= 5e-6 for difference in worst(finished).values())


def test_run_of_dense_and_sparse_features_passes_its_canary(run, declared):
    features = {
        **DECLARED, "s": {"pool": "splade", "strategy": "sum", "max_active_dims": 8}, "p": {"pool": "splade"},
        "cls": {"pool": "cls", "layers": "all"}, "t": {"pool": "tokens"}, "a": {"pool": "attentions"},
    }  # fmt: skip
    finished = run(features, name=declared("SPLADE max of log1p twice"))
    assert all(difference <= 5e-6 for difference in worst(finished).values())


def test_run_of_bge_m3_passes_its_canary(run, minilm, tmp_path):
    folder = bge_m3_folder(Bodies(tmp_path, minilm))
    for stem in ("sparse_linear", "colbert_linear"):
        save_file(torch.load(folder / f"{stem}.pt", weights_only=True), folder / f"{stem}.safetensors")
    pools = {"d": "declared", "s": "sparse_linear", "l": "colbert_linear"}
    finished = run({name: {"pool": pool} for name, pool in pools.items()}, name=str(folder))
    assert all(difference <= 5e-6 for difference in worst(finished).values())


def shift_ids(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    ids = table["e_ids"].combine_chunks()
    shifted = pa.array(ids.values.to_numpy() + 1, pa.int32())
    return {"e_ids": pa.ListArray.from_arrays(ids.offsets, shifted, mask=ids.is_null())}


def negate(table: pa.Table) -> dict[str, pa.Array]:
    lists = table["e"].combine_chunks()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(-lists.values.values.to_numpy()), type=lists.type.value_type)
    return {"e": pa.ListArray.from_arrays(lists.offsets, vectors, mask=lists.is_null())}


def without_last(table: pa.Table) -> dict[str, pa.Array]:
    lists = [row and row[:-1] for row in table["e"].to_pylist()]
    return {"e": pa.array(lists, table["e"].type)}


@pytest.mark.parametrize(
    ("name", "long_text", "change"),
    [
        ("SPLADE max", "truncate", shift_ids),
        ("MultiVectorEncoder", "truncate", negate),
        ("MultiVectorEncoder", "truncate", without_last),
        (CLUSTERED, "truncate", negate),
        ("residual Dense", WINDOWS | {"chunk": {"tokens": 8}}, negate),
        ("residual Dense", WINDOWS | {"chunk": {"tokens": 8}}, without_last),
    ],
)
def test_canary_finds_changed_values(job_of, declared, tmp_path, name, long_text, change):
    job = job_of(DECLARED, name=declared(name), long_text=long_text)
    part = finish(job).parts[0]
    table = pq.read_table(tmp_path / "output" / part.name)
    for stored, cells in change(table).items():
        index = table.schema.get_field_index(stored)
        table = table.set_column(index, table.schema.field(index), cells)
    other = Storage(str(tmp_path / "other"))
    result = compare(make_plan(job, device="cpu"), other, [write_part(other, part.range, table, part.fingerprint)])
    assert not result["passed"]
    assert "e of shard 0" in result["failed"][0]
