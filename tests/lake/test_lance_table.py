"""A Lance dataset as a source: pinned versions, fragments with their deletes, identities."""

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from tests.lake.backend_lance import Backend
from tests.lake.backends import make_backend, rows
from varve.config.table_address import parse_table_address
from varve.errors import JobError, RunError
from varve.lake.lance.lance_table import LanceTable
from varve.lake.lance.tag import create_tag, delete_tag, tagged_version
from varve.lake.table import VersionExpiredError


@pytest.fixture(params=["lance-disk", "lance-s3"])
def docs(request, tmp_path, monkeypatch) -> Backend:
    """Four fragments."""
    made = make_backend(request.param, tmp_path, lambda: request.getfixturevalue("seaweed"), monkeypatch)
    assert isinstance(made, Backend)
    made.create(rows(range(35)))
    return made


@pytest.fixture
def local(tmp_path) -> Backend:
    made = Backend(str(tmp_path))
    made.create(rows(range(35)))
    return made


def open_docs(docs: Backend) -> LanceTable:
    return LanceTable(parse_table_address(docs.address))


def read_keys(table: LanceTable, version: int | None) -> list[int]:
    read = [part for file in table.files(version) for part in table.read(version, file, ["doc_id"])]
    return pa.concat_tables(read)["doc_id"].to_pylist() if read else []


def test_lance_rows_of_all_fragments_are_those_of_the_dataset(docs):
    docs.delete([3, 17])
    table = open_docs(docs)
    pin = table.pin(None)
    files = table.files(pin.version)
    assert pin.schema == pa.schema([("doc_id", pa.int64()), ("lang", pa.string()), ("body", pa.string())])
    assert [(file.path, file.num_rows) for file in files] == [
        ("fragment/0", 9), ("fragment/1", 9), ("fragment/2", 10), ("fragment/3", 5),
    ]  # fmt: skip
    assert all(file.file_bytes > 0 for file in files)
    assert read_keys(table, pin.version) == [key for key in range(35) if key not in {3, 17}]


def test_lance_columns_are_read_in_the_requested_order(local):
    table = open_docs(local)
    version = table.pin(None).version
    (read,) = table.read(version, table.files(version)[1], ["body", "doc_id"])
    assert read.column_names == ["body", "doc_id"]
    assert read["body"][0].as_py() == "text 10"


def test_lance_table_without_version_has_no_rows(local):
    assert open_docs(local).files(None) == []


def test_lance_large_and_dictionary_strings_are_plain_strings(tmp_path):
    made = Backend(str(tmp_path))
    large = pa.table(
        {"body": pa.array(["a", None], pa.large_string()), "lang": pa.array(["x", "y"]).dictionary_encode()}
    )
    lance.write_dataset(large, made.uri)
    table = open_docs(made)
    pin = table.pin(None)
    assert pin.schema == pa.schema([("body", pa.string()), ("lang", pa.string())])
    (read,) = table.read(pin.version, table.files(pin.version)[0], ["body", "lang"])
    assert read.schema == pin.schema
    assert read.to_pydict() == {"body": ["a", None], "lang": ["x", "y"]}


def test_lance_pin_at_number_tag_and_timestamp_gives_that_version(docs):
    table = open_docs(docs)
    first = table.pin(None).version
    docs.open().tags.create("release", first)
    after_first = datetime.now(UTC)
    docs.append(rows([100]))
    assert table.pin(None).version != first
    for at in (first, str(first), "release", after_first.isoformat(), after_first.replace(tzinfo=None).isoformat()):
        assert table.pin(at).version == first
        assert len(read_keys(table, table.pin(at).version)) == 35
    assert len(read_keys(table, table.pin(None).version)) == 36


@pytest.mark.parametrize(("at", "message"), [
    ("nightly", "has no tag 'nightly'"),
    (999, "has no version 999"),
    ("2001-01-01", "no version at 2001-01-01"),
    ("experiment", "is on a branch"),
])  # fmt: skip
def test_lance_pin_at_what_does_not_exist_is_refused(local, at, message):
    local.open().create_branch("experiment")
    with pytest.raises(JobError, match=message):
        open_docs(local).pin(at)


def test_lance_dataset_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(JobError, match="there is no Lance dataset"):
        open_docs(Backend(str(tmp_path))).pin(None)


def test_lance_uuid_outlives_the_first_version(docs):
    uuid = open_docs(docs).pin(None).uuid
    docs.append(rows([100]))
    docs.open().cleanup_old_versions(older_than=timedelta(0))
    assert open_docs(docs).pin(None).uuid == uuid


def test_lance_uuid_is_the_same_for_tables_pinned_at_once(local):
    with ThreadPoolExecutor(8) as threads:
        uuids = set(threads.map(lambda _: open_docs(local).pin(None).uuid, range(8)))
    assert len(uuids) == 1


def test_lance_dataset_without_its_first_version_gets_a_lasting_uuid(local):
    local.append(rows([100]))
    local.open().cleanup_old_versions(older_than=timedelta(0))
    uuid = open_docs(local).pin(None).uuid
    assert uuid
    assert open_docs(local).pin(None).uuid == uuid


def test_lance_dataset_that_replaces_another_one_has_another_uuid(tmp_path):
    made = Backend(str(tmp_path))
    uuids = set()
    for _ in range(2):
        made.create(rows(range(3)))
        uuids.add(open_docs(made).pin(None).uuid)
        shutil.rmtree(made.uri)
    assert len(uuids) == 2


def test_lance_pin_of_a_known_dataset_makes_no_version(local):
    table = open_docs(local)
    assert table.pin(None).version == table.pin(None).version == local.open().version


@pytest.mark.parametrize(("change", "changed"), [
    (lambda docs: docs.append(rows([100])), {"fragment/4"}),
    (lambda docs: docs.delete([12]), {"fragment/1"}),
    (lambda docs: docs.update_text(12, "new"), {"fragment/1", "fragment/4"}),
    (lambda docs: docs.compact(), {"fragment/4"}),
    (lambda docs: docs.open().add_columns({"twice": "doc_id * 2"}), {f"fragment/{at}" for at in range(4)}),
    (lambda docs: docs.open().update_config({"a": "b"}), set()),
    (lambda docs: docs.open().create_scalar_index("doc_id", "BTREE"), set()),
])  # fmt: skip
def test_lance_identity_changes_with_the_rows_of_a_fragment_alone(local, change, changed):
    table = open_docs(local)
    before = {file.path: file.identity for file in table.files(table.pin(None).version)}
    change(local)
    after = {file.path: file.identity for file in table.files(table.pin(None).version)}
    assert {path for path, identity in after.items() if before.get(path) != identity} == changed


def test_lance_version_that_was_cleaned_up_is_expired(docs):
    table = open_docs(docs)
    first = table.pin(None).version
    docs.append(rows([100]))
    docs.open().cleanup_old_versions(older_than=timedelta(0))
    with pytest.raises(VersionExpiredError, match=f"version {first} does not exist"):
        LanceTable(table.address).files(first)


def test_lance_tag_keeps_a_version_until_its_run_removes_it(docs):
    table = open_docs(docs)
    first = table.pin(None).version
    assert first is not None
    assert create_tag(table.uri, "varve-1", first) == first
    docs.append(rows([100]))
    later = table.pin(None).version
    assert later is not None
    assert create_tag(table.uri, "varve-1", later) == first  # the one that exists
    docs.open().cleanup_old_versions(older_than=timedelta(0), error_if_tagged_old_versions=False)
    assert len(read_keys(table, first)) == 35
    delete_tag(table.uri, "varve-1", later)
    assert tagged_version(table.uri, "varve-1") == first
    delete_tag(table.uri, "varve-1", first)
    delete_tag(table.uri, "varve-1", first)
    assert tagged_version(table.uri, "varve-1") is None


def test_lance_fragment_without_its_data_file_is_expired(local):
    table = open_docs(local)
    version = table.pin(None).version
    for file in local.open().get_fragments()[1].data_files():
        (Path(local.uri) / "data" / file.path).unlink()
    with pytest.raises(VersionExpiredError, match="fragment/1"):
        list(table.read(version, table.files(version)[1], ["body"]))


def test_lance_handle_holds_no_credential(docs):
    table = open_docs(docs)
    table.pin(None)
    content = pickle.dumps(table) + repr(table).encode()
    assert pickle.loads(content) == table
    for secret in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert os.environ.get(secret, "nothing").encode() not in content


def test_lance_store_that_cannot_be_reached_is_an_error_of_the_run(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(RunError, match="cannot be read") as error:
        LanceTable(parse_table_address("lance+s3://bucket/docs.lance")).pin(None)
    assert "very-secret" not in str(error.value)
