"""job.json may come from anybody: its values are checked before any of them is used."""

import base64
import json

import pyarrow as pa
import pytest

from varve.cli.main import run_command
from varve.errors import JobError
from varve.planning.saved_job import JOB_NAME, read_job
from varve.storage.object_store import Storage

SCHEMA = base64.b64encode(pa.schema([("text", pa.string())]).serialize().to_pybytes()).decode()
RESOLVED = {
    "source_commit": None, "source_identity": "s", "num_shards": 2, "schema": SCHEMA, "model_commit": None,
    "weights_sha256": "w", "tokenizer_sha256": "t", "max_tokens": 16, "dtype": "float32", "tokens_per_pack": 512,
    "block_rows": 64, "rows_per_part": 100,
}  # fmt: skip
SOURCE = {"files": ["a", "b"], "versions": ["1", "2"], "shards": {"files": [0, 1], "rows": [10, 20]}}


def stored(resolved=(), source=(), shards=(), **changes) -> dict:
    return {
        "fingerprint": "f" * 64,
        "created_at": "2026-01-01T00:00:00+00:00",
        "job": {},
        "resolved": RESOLVED | dict(resolved),
        "source": SOURCE | dict(source) | {"shards": SOURCE["shards"] | dict(shards)},
        **changes,
    }


@pytest.fixture
def output(tmp_path) -> Storage:
    (tmp_path / "_varve").mkdir()
    return Storage(str(tmp_path))


def test_valid_job_is_read_as_it_is(output, tmp_path):
    (tmp_path / JOB_NAME).write_text(json.dumps(stored()))
    assert read_job(output) == stored()


UNKNOWN = {"files": None, "rows": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (stored({"num_shards": 10**12}), "resolved.num_shards is 1000000000000, source.shards.files has 2 entries"),
        (stored({"num_shards": 10**12}, shards=UNKNOWN), "expected at most 2000 for 2 file"),
        (stored({"num_shards": -1}, shards=UNKNOWN), "num_shards"),
        (stored({"rows_per_part": 0}), "rows_per_part"),
        (stored({"rows_per_part": 10**18}), "rows_per_part"),
        (stored({"rows_per_part": "100"}), "rows_per_part"),
        (stored({"schema": "AAAA"}), "ArrowInvalid"),
        (stored({"unknown": 1}), "unknown"),
        (stored(shards={"rows": [10**18, 1]}), "source.shards.rows.0"),
        (stored(shards={"files": [0, 7]}), "names file 7 of 2"),
        (stored({"versions": None}), "versions"),
        (stored(source={"versions": ["1"]}), "source.versions has 1 entries for 2 files"),
        (stored(fingerprint="../../x"), "fingerprint"),
        (stored(job=[]), "job"),
        (stored(code={"folder": 1, "identity": {}}), "code.folder"),
    ],
)  # fmt: skip
def test_job_with_an_invalid_value_is_rejected_in_one_line(content, message, output, tmp_path, capsys):
    (tmp_path / JOB_NAME).write_text(json.dumps(content))
    with pytest.raises(JobError, match=r"job\.json cannot be read by this version of Varve: ") as raised:
        read_job(output)
    assert message in str(raised.value)
    assert run_command(["status", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_part_far_beyond_the_others_ends_status_in_one_line(output, tmp_path, capsys):
    (tmp_path / JOB_NAME).write_text(json.dumps(stored({"rows_per_part": 1})))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/part-00000-999999999998-999999999999.parquet").touch()
    assert run_command(["status", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "is beyond the first 10,000,000 cells" in error
    assert len(error.splitlines()) == 1
