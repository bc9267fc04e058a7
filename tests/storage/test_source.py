"""A source in a store that does not answer: the error is reported, and not taken for a change of the file."""

import io
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from varve.config.source import Source
from varve.errors import JobError, RunError
from varve.source.open_dataset import open_dataset
from varve.storage.object_store import Storage


@pytest.fixture
def source(container, monkeypatch) -> Source:
    """One file in a bucket, and clients that read the environment again and do not retry."""
    address, content = container("moto"), io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"]}), content)
    Storage(address).create("docs/0.parquet", content.getvalue())
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    forget_clients()
    return Source(dataset="parquet", data_files=f"{address}/docs/0.parquet", text="text")


def forget_clients() -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture(params=["NoCredentialsError", "EndpointConnectionError"])
def trouble(request, monkeypatch):
    """() → causes an error that s3fs raises unchanged; returns its class name."""

    def make() -> str:
        if request.param == "EndpointConnectionError":
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        else:
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        forget_clients()
        return request.param

    yield make
    forget_clients()


@pytest.mark.parametrize("known", ["files", "a folder"])
def test_store_that_does_not_answer_is_reported_at_planning(source, trouble, known):
    if known == "a folder":
        source = Source(dataset=source.locations[0].removesuffix("/0.parquet"), text="text")
    kind = trouble()
    with pytest.raises(JobError, match=rf"{source.locations[0]} cannot be opened: {kind}.*Check the"):
        open_dataset(source)


def test_json_files_with_different_keys_are_read_from_a_store(container):
    address, count = container("moto"), 20
    for number in range(count):
        row = {"text": f"text {number}", "kept": number or None, f"only here {number}": {"a": number}}
        Storage(address).create(f"docs/{number:02}.jsonl", json.dumps(row).encode())
    forget_clients()
    dataset = open_dataset(Source(dataset="json", data_files=f"{address}/docs/*.jsonl", text="text", keep=("kept",)))
    assert dataset.num_shards == count
    rows = [row for shard in range(count) for table in dataset.read(shard) for row in table.to_pylist()]
    assert rows == [{"text": f"text {number}", "kept": number or None} for number in range(count)]


def test_store_that_does_not_answer_is_not_taken_for_a_change(source, trouble):
    dataset = open_dataset(source)
    dataset.check(0)
    kind = trouble()
    with pytest.raises(RunError, match=rf"0\.parquet\).*{kind}") as raised:
        dataset.check(0)
    assert "has changed" not in str(raised.value)


def test_deleted_file_is_a_change(source):
    dataset = open_dataset(source)
    address, _, name = source.locations[0].rpartition("/docs/")
    fsspec.filesystem("s3").rm_file(f"{address}/docs/{name}")
    with pytest.raises(RunError, match=r"has changed since the run was planned.* it is gone"):
        dataset.check(0)


def test_message_on_a_missing_client_has_the_advice_to_install_it():
    with pytest.raises(
        JobError, match=r"oci://bucket/\*\.parquet cannot be opened: ImportError.*every machine that reads"
    ):
        open_dataset(Source(dataset="parquet", data_files="oci://bucket/*.parquet", text="text"))
