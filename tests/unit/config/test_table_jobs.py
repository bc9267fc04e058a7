"""Jobs whose source or output is a lake table: addresses, keys that go together, and the way to a cluster."""

import pytest

from varve.cli.submit import finished
from varve.config.job import Job
from varve.config.table_address import TableAddress, is_table, parse_table_address
from varve.errors import JobError
from varve.submission.jobs_client import submission_name
from varve.submission.package import local_paths

SOURCE = {"table": "iceberg://lake/db.docs", "key": "doc_id", "text": "body"}


def job(source: dict = SOURCE, **output) -> Job:
    output = output or {"table": "iceberg://lake/db.docs_features"}
    return Job.parse({"source": source, "model": {"name": "m"}, "output": output})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("iceberg://lake/db.docs", TableAddress("iceberg", "lake", "db.docs")),
        ("iceberg://lake/a.b.docs", TableAddress("iceberg", "lake", "a.b.docs")),
        ("delta+s3://bucket/docs/", TableAddress("delta", "", "s3://bucket/docs")),
        ("delta+file:///data/my%20docs", TableAddress("delta", "", "/data/my docs")),
        ("lance+/data/docs.lance", TableAddress("lance", "", "/data/docs.lance")),
    ],
)
def test_address_of_a_table_is_parsed_and_written_back(text, expected):
    parsed = parse_table_address(text)
    assert parsed == expected
    assert parse_table_address(str(parsed)) == parsed
    assert is_table(text)


def test_relative_path_of_a_table_is_one_of_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse_table_address("delta+docs").name == str(tmp_path / "docs")


@pytest.mark.parametrize(
    "text", ["iceberg://lake", "iceberg://lake/docs", "iceberg:///db.docs", "iceberg://lake/db.", "delta+", "docs", ""]
)
def test_text_that_is_no_address_of_a_table_is_refused(text):
    with pytest.raises(ValueError, match="expected iceberg://"):
        parse_table_address(text)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"text": "body"}, "one of dataset and table"),
        ({**SOURCE, "dataset": "x"}, "a dataset and a table"),
        ({**SOURCE, "split": "test"}, "source.split"),
        ({**SOURCE, "data_files": "x"}, "source.data_files"),
        ({"dataset": "x", "text": "body", "key": "doc_id"}, "source.key"),
        ({"dataset": "x", "text": "body", "at": 3}, "source.at"),
        ({**SOURCE, "table": "s3://bucket/docs"}, "expected iceberg://"),
        ({**SOURCE, "table": "delta+https://user:secret@host/docs"}, "credential"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(source, problem):
    with pytest.raises(JobError, match=problem) as refused:
        job(source)
    assert "user:secret" not in str(refused.value)


def test_job_without_output_is_refused():
    with pytest.raises(JobError, match="one of path and table"):
        job(partition="none")


def test_written_job_is_read_as_the_same_job():
    made = job(**{"table": "delta+/data/docs", "from": "full", "deletes": "keep", "partition": "none"})
    content = made.model_dump(mode="json")
    assert content["output"]["from"] == "full"
    assert Job.parse(content) == made


def test_identity_of_a_job_without_tables_has_no_keys_of_tables():
    plain = Job.parse({"source": {"dataset": "x", "text": "t"}, "model": {"name": "m"}, "output": {"path": "o"}})
    assert not {"source.table", "source.at", "source.key"} & plain.identity().keys()


def test_table_job_is_sent_to_a_cluster_each_time():
    """Its source may have changed, which only the run finds out."""
    assert finished(job(), None) is None
    assert submission_name(job()) != submission_name(job(table="iceberg://lake/db.other"))


def test_tables_on_a_disk_are_local_paths():
    on_disk = job({**SOURCE, "table": "delta+/data/docs"}, table="delta+/data/features")
    assert local_paths(on_disk) == {"source.table": "/data/docs", "output.table": "/data/features"}
    assert local_paths(job()) == {}
