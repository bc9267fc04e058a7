"""Delta tables as a source: versions, files, rows."""

import base64
import datetime as dt
import json
import os
import pickle
import shutil
import struct
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable as DeltaVersion
from deltalake import write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lake.backend_delta import Backend
from tests.lake.delta_tables import new_root
from varve.config.table_address import parse_table_address
from varve.errors import JobError, RunError
from varve.lake.delta.delta_table import DeltaTable
from varve.lake.table import PartitionField, VersionExpiredError

VECTORS = Path(__file__).parent / "data/delta_deletion_vectors"


def rows(keys, lang=None) -> pa.Table:
    langs = [lang or ("de" if key % 2 else "en") for key in keys]
    return pa.table({"doc_id": pa.array(keys, pa.int64()), "lang": langs, "body": [f"text {key}" for key in keys]})


@pytest.fixture(params=["disk", "s3"])
def backend(request, monkeypatch) -> Backend:
    return Backend(new_root(request, monkeypatch))


def source(address: str | Path) -> DeltaTable:
    text = str(address)
    return DeltaTable(parse_table_address(text if text.startswith("delta+") else f"delta+{text}"))


def read(table: DeltaTable, version: int, columns=("doc_id", "lang", "body")) -> pa.Table:
    batches = [batch for file in table.files(version) for batch in table.read(version, file, columns)]
    return pa.concat_tables(batches)


def edit_log(folder: Path, version: int, change) -> None:
    """Replace the actions of a version by what `change` returns for each; None drops it."""
    path = folder / f"_delta_log/{version:020d}.json"
    actions = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps(action) for action in actions if action))


def test_pin_of_a_table_has_id_version_plain_types_and_partition(backend):
    backend.create(rows([1, 2]), partition="lang")
    pin = source(backend.address).pin(None)
    assert pin.uuid == DeltaVersion(backend.uri).metadata().id
    assert pin.version == 0
    assert pin.schema == pa.schema([("doc_id", pa.int64()), ("lang", pa.string()), ("body", pa.string())])
    assert pin.partition == (PartitionField("lang", "lang", "identity"),)


def test_old_versions_keep_their_files_and_rows(backend):
    backend.create(rows(range(10)), partition="lang")
    table = source(backend.address)
    first = table.files(0, "doc_id")
    backend.append(rows([10, 11]))
    backend.update(rows([3]).set_column(2, "body", [["changed"]]))
    backend.delete([4])
    backend.compact()
    assert table.files(0, "doc_id") == first
    assert [(file.num_rows, file.partition, file.key_range) for file in first] == [
        (5, '["de"]', (1, 9)),
        (5, '["en"]', (0, 8)),
    ]
    assert read(table, 0).sort_by("doc_id").equals(rows(range(10)))
    latest = table.pin(None).version
    bodies = dict(zip(*(read(table, latest)[name].to_pylist() for name in ("doc_id", "body")), strict=True))
    assert bodies == {key: f"text {key}" for key in range(12) if key != 4} | {3: "changed"}
    assert pa.table(backend.read(backend.address)).num_rows == 11


def test_append_keeps_the_identity_of_other_files(backend):
    backend.create(rows([1, 2]))
    backend.append(rows([3]))
    table = source(backend.address)
    before, after = ({file.identity for file in table.files(version)} for version in (0, 1))
    assert before < after
    assert len(after) == 2


def test_paths_with_special_characters_are_read(tmp_path):
    langs = ["d e", "en/x%", "a=b&c", "é", "100%25", None]
    table = pa.table({"doc_id": pa.array(range(6), pa.int64()), "lang": langs, "body": ["text"] * 6})
    backend = Backend(str(tmp_path / "my docs é%"))
    backend.create(table, partition="lang")
    found = read(source(backend.address), 0).sort_by("doc_id")
    assert found["lang"].to_pylist() == langs
    for file in source(backend.address).files(0):
        assert Path(file.path).stat().st_size == file.file_bytes


def test_empty_partition_value_is_null(tmp_path):
    write_deltalake(tmp_path / "t", rows([1], lang=" ").set_column(1, "lang", [[""]]), partition_by=["lang"])
    [file] = source(tmp_path / "t").files(0)
    assert file.partition == "[null]"
    assert read(source(tmp_path / "t"), 0)["lang"].to_pylist() == [None]


def test_partition_values_of_every_type_come_back(tmp_path):
    when = dt.datetime(2024, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)
    values = {
        "date": pa.array([dt.date(2024, 1, 2), None]),
        "time": pa.array([when, None], pa.timestamp("us", "UTC")),
        "local": pa.array([when.replace(tzinfo=None), None], pa.timestamp("us")),
        "int": pa.array([-7, None], pa.int16()),
        "long": pa.array([2**60, None], pa.int64()),
        "float": pa.array([1.5, None], pa.float32()),
        "flag": pa.array([False, None]),
        "price": pa.array([Decimal("1.20"), None], pa.decimal128(9, 2)),
    }
    table = pa.table({"doc_id": pa.array([1, 2], pa.int64()), **values})
    write_deltalake(tmp_path / "t", table, partition_by=list(values))
    found = read(source(tmp_path / "t"), 0, table.column_names).sort_by("doc_id")
    assert found.to_pylist() == table.to_pylist()
    assert found.schema == source(tmp_path / "t").pin(None).schema


def test_partition_columns_alone_have_the_rows_of_the_file(tmp_path):
    write_deltalake(tmp_path / "t", rows(range(7), lang="de"), partition_by=["lang"])
    assert read(source(tmp_path / "t"), 0, ["lang"])["lang"].to_pylist() == ["de"] * 7


def test_column_added_later_is_null_in_older_files(tmp_path):
    write_deltalake(tmp_path / "t", rows([1]))
    wider = rows([2]).append_column("tags", pa.array([["a", "b"]], pa.list_(pa.string())))
    write_deltalake(tmp_path / "t", wider, mode="append", schema_mode="merge")
    found = read(source(tmp_path / "t"), 1, ["doc_id", "tags"]).sort_by("doc_id")
    assert found["tags"].to_pylist() == [None, ["a", "b"]]
    assert found.schema.field("tags").type == pa.list_(pa.string())


def test_views_of_other_writers_become_plain_strings(tmp_path):
    backend = Backend(str(tmp_path))
    backend.create(rows([1, 2]))
    backend.update(rows([2]).set_column(2, "body", [["changed"]]))
    [file] = (backend_file for backend_file in source(backend.address).files(1))
    stored = pq.read_schema(file.path).field("body").type
    assert stored == pa.string_view()  # otherwise this test shows nothing
    assert read(source(backend.address), 1).schema.field("body").type == pa.string()


def test_batches_are_small_and_in_the_order_of_the_file(tmp_path):
    write_deltalake(tmp_path / "t", rows(range(20_000), lang="de"))
    table = source(tmp_path / "t")
    [file] = table.files(0)
    batches = list(table.read(0, file, ["doc_id"]))
    assert max(map(len, batches)) <= 5_000
    assert pa.concat_tables(batches)["doc_id"].to_pylist() == list(range(20_000))


def test_handles_and_files_can_be_pickled(backend):
    backend.create(rows(range(4)), partition="lang")
    table = source(backend.address)
    table, files = pickle.loads(pickle.dumps((table, table.files(0))))
    assert sum(len(batch) for file in files for batch in table.read(0, file, ["doc_id"])) == 4


def test_reading_keys_leaves_the_bytes_of_texts_alone(tmp_path):
    noise = [os.urandom(500).hex() for _ in range(3_000)]
    write_deltalake(tmp_path / "t", rows(range(3_000)).set_column(2, "body", [noise]))
    [file] = source(tmp_path / "t").files(0)
    before = _bytes_read()
    assert len(pa.concat_tables(source(tmp_path / "t").read(0, file, ["doc_id"]))) == 3_000
    assert _bytes_read() - before < file.file_bytes / 4


def _bytes_read() -> int:
    """Bytes that this process has read by system calls."""
    return int(Path("/proc/self/io").read_text().splitlines()[0].split()[1])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.lists(st.text(st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=5, unique=True))
def test_bounds_of_long_keys_contain_them(tmp_path, keys):
    """Writers shorten the bounds of strings."""
    write_deltalake(tmp_path / "t", pa.table({"doc_id": keys}), mode="overwrite")
    DeltaVersion(tmp_path / "t").optimize.compact()
    table = source(tmp_path / "t")
    for file in table.files(table.pin(None).version, "doc_id"):
        assert file.key_range is None or file.key_range[0] <= min(keys) <= max(keys) <= file.key_range[1]


def test_bounds_of_times_contain_them(tmp_path):
    """The log cuts off what is below a millisecond."""
    when = dt.datetime(2024, 1, 2, 3, 4, 5, 678_901, tzinfo=dt.UTC)
    write_deltalake(tmp_path / "t", pa.table({"when": pa.array([when], pa.timestamp("us", "UTC"))}))
    [file] = source(tmp_path / "t").files(0, "when")
    assert file.key_range is not None
    assert file.key_range[0] <= when <= file.key_range[1]


# Deletion vectors.


def test_deletion_vectors_hide_their_rows():
    table = source(VECTORS)
    before, after = table.files(1, "doc_id"), table.files(2, "doc_id")
    assert [file.num_rows for file in before] == [10, 10]
    assert [file.num_rows for file in after] == [9, 8]
    assert [file.path for file in before] == [file.path for file in after]
    assert all(old.identity != new.identity for old, new in zip(before, after, strict=True))
    assert sorted(read(table, 2)["doc_id"].to_pylist()) == [key for key in range(20) if key not in {3, 4, 18}]
    assert sorted(read(table, 1)["doc_id"].to_pylist()) == list(range(20))


def test_deletion_vectors_of_files_without_numbers_of_rows_are_refused(tmp_path):
    shutil.copytree(VECTORS, tmp_path / "t")

    def without_statistics(action):
        return {"add": {**action["add"], "stats": None}} if "add" in action else action

    for version in (1, 2):
        edit_log(tmp_path / "t", version, without_statistics)
    table = source(tmp_path / "t")
    assert [(file.num_rows, file.key_range) for file in table.files(1, "doc_id")] == [(None, None)] * 2
    assert len(read(table, 1)) == 20
    with pytest.raises(JobError, match=r"version 2 has deletion vectors that cannot be read: .*Missing numRecords"):
        table.files(2)


_BASE85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"  # of Python
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"  # of Delta
_MAGIC, _ROARING = 1681511377, 12346


def inline_vector(positions: list[int]) -> dict:
    """A deletion vector within the log: a Roaring bitmap with one container of sorted positions below 65,536."""
    bitmap = struct.pack("<IIHHI", _ROARING, 1, 0, len(positions) - 1, 16)
    bitmap += struct.pack(f"<{len(positions)}H", *positions)
    content = struct.pack("<IQI", _MAGIC, 1, 0) + bitmap
    padded = content + bytes(-len(content) % 4)
    text = base64.b85encode(padded).decode().translate(str.maketrans(_BASE85, _Z85))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(content), "cardinality": len(positions)}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deleted=st.sets(st.integers(0, 9_999), min_size=1, max_size=50))
def test_deletion_vectors_of_long_files_hide_their_rows_in_every_batch(tmp_path, deleted):
    write_deltalake(tmp_path / "t", rows(range(10_000), lang="de"), mode="overwrite")
    version = DeltaVersion(tmp_path / "t").version()

    def with_vector(action):
        if "protocol" in action:
            features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
            return {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}}
        if "add" in action:
            return {"add": {**action["add"], "deletionVector": inline_vector(sorted(deleted))}}
        return action

    edit_log(tmp_path / "t", version, with_vector)
    [file] = source(tmp_path / "t").files(version)
    assert file.num_rows == 10_000 - len(deleted)
    kept = read(source(tmp_path / "t"), version)["doc_id"].to_pylist()
    assert kept == [key for key in range(10_000) if key not in deleted]
    shutil.rmtree(tmp_path / "t")


def test_task_with_a_deletion_vector_survives_pickling():
    table = source(VECTORS)
    files = pickle.loads(pickle.dumps(table.files(2)))
    assert sum(len(batch) for file in files for batch in table.read(2, file, ["body"])) == 17


# Versions and refusals.


def test_versions_are_named_by_number_and_time(backend):
    backend.create(rows([1]))
    backend.append(rows([2]))
    table = source(backend.address)
    assert [table.pin(at).version for at in (0, "0", 1, "1", None)] == [0, 0, 1, 1, 1]
    assert table.pin("2999-01-01").version == 1


def test_timestamp_selects_the_version_of_its_time(tmp_path):
    backend = Backend(str(tmp_path))
    backend.create(rows([1]))
    backend.append(rows([2]))
    for version, day in ((0, 1), (1, 3)):
        when = dt.datetime(2024, 1, day, tzinfo=dt.UTC).timestamp()
        edit_log(tmp_path / "docs", version, lambda action, when=when: _at(action, when))
        os.utime(tmp_path / f"docs/_delta_log/{version:020d}.json", (when, when))
    table = source(backend.address)
    assert [table.pin(at).version for at in ("2024-01-02T00:00:00Z", "2024-01-03", "2024-02-01T00:00:00+01:00")] == [
        0,
        1,
        1,
    ]
    with pytest.raises(JobError, match=r"no version at 2023-12-31T00:00:00\+00:00: version 0 is of 2024-01-01"):
        table.pin("2023-12-31")


def _at(action, when):
    return {"commitInfo": {**action["commitInfo"], "timestamp": int(when * 1000)}} if "commitInfo" in action else action


@pytest.mark.parametrize("at", [7, "7", 2**70])
def test_version_that_does_not_exist_is_refused_with_the_latest(backend, at):
    backend.create(rows([1]))
    with pytest.raises(JobError, match=rf"source.at: .*docs: version {at} cannot be read: the latest one is 0"):
        source(backend.address).pin(at)


@pytest.mark.parametrize("at", ["main", "v1.0", "-1", "²"])
def test_tags_and_branches_are_refused(tmp_path, at):
    Backend(str(tmp_path)).create(rows([1]))
    with pytest.raises(JobError, match="Delta has no tags and branches"):
        source(tmp_path / "docs").pin(at)


def test_missing_table_is_refused(backend):
    with pytest.raises(JobError, match=r"docs: there is no Delta table: expected a folder with _delta_log"):
        source(backend.address).pin(None)
    assert not source(backend.address).exists()


def test_missing_bucket_is_refused(seaweed, monkeypatch):
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(JobError, match=r"s3://no-such-bucket/docs: there is no Delta table: .*NoSuchBucket"):
        source("delta+s3://no-such-bucket/docs").pin(None)


def test_file_in_place_of_a_table_is_refused(tmp_path):
    (tmp_path / "docs").write_text("text")
    with pytest.raises(JobError, match="docs: there is no Delta table: "):
        source(tmp_path / "docs").pin(None)


def test_version_without_log_has_expired(tmp_path):
    backend = Backend(str(tmp_path))
    backend.create(rows([1]))
    backend.append(rows([2]))
    DeltaVersion(backend.uri).create_checkpoint()
    (tmp_path / f"docs/_delta_log/{0:020d}.json").unlink()
    assert read(source(backend.address), 1)["doc_id"].to_pylist()
    with pytest.raises(VersionExpiredError, match="version 0 cannot be read: the latest one is 1"):
        source(backend.address).files(0)
    with pytest.raises(JobError, match="version 0 cannot be read"):
        source(backend.address).pin(0)


def test_vacuumed_file_has_expired(backend):
    backend.create(rows([1, 2]))
    table = source(backend.address)
    [file] = table.files(0)
    backend.delete([1])
    DeltaVersion(backend.uri).vacuum(0, dry_run=False, enforce_retention_duration=False)
    with pytest.raises(VersionExpiredError, match=r"parquet is gone: VACUUM"):
        list(table.read(0, file, ["doc_id"]))


def test_damaged_file_is_named(tmp_path):
    Backend(str(tmp_path)).create(rows([1, 2]))
    table = source(tmp_path / "docs")
    [file] = table.files(0)
    Path(file.path).write_bytes(b"x" * file.file_bytes)
    with pytest.raises(RunError, match=r"parquet cannot be read: ArrowInvalid"):
        list(table.read(0, file, ["doc_id"]))


def features(*names: str) -> dict:
    return {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": list(names)}


MAPPED = {"type": "struct", "fields": [{"name": "doc_id", "type": "long", "nullable": True, "metadata": {}}]}
MAPPED["fields"][0]["metadata"] = {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"}


@pytest.mark.parametrize(
    ("protocol", "mapped", "named"),
    [
        ({"minReaderVersion": 2, "minWriterVersion": 5}, True, "columnMapping"),
        ({"minReaderVersion": 2, "minWriterVersion": 5}, False, None),
        (features("columnMapping"), True, "columnMapping"),
        (features("columnMapping"), False, None),
        (features("secretSauce"), False, "secretSauce"),
        (features("catalogManaged"), False, "catalogManaged"),
        (features("variantShredding-preview", "deletionVectors"), False, "variantShredding-preview"),
        (features("timestampNtz", "v2Checkpoint", "typeWidening"), False, None),
    ],
)
def test_unknown_features_of_the_protocol_are_refused_by_name(tmp_path, protocol, mapped, named):
    Backend(str(tmp_path)).create(rows([1]))
    protocol = protocol | {"writerFeatures": protocol["readerFeatures"]} if "readerFeatures" in protocol else protocol

    def upgraded(action):
        if "protocol" in action:
            return {"protocol": protocol}
        if "metaData" in action and mapped:
            configuration = {"delta.columnMapping.mode": "name"}
            return {
                "metaData": {**action["metaData"], "configuration": configuration, "schemaString": json.dumps(MAPPED)}
            }
        return action

    edit_log(tmp_path / "docs", 0, upgraded)
    table = source(tmp_path / "docs")
    if named is None:
        assert table.pin(None).version == 0
        return
    with pytest.raises(JobError, match=f"Varve cannot read tables with {named}: expected a table without it"):
        table.pin(None)


def test_endpoint_without_tls_needs_no_further_setting(request, monkeypatch):
    seaweed = request.getfixturevalue("seaweed")
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    backend = Backend(seaweed.new_folder())
    backend.create(rows([1]))
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    assert source(backend.address).pin(None).version == 0


def test_credentials_appear_in_no_error_and_no_pickle(seaweed, monkeypatch):
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    backend = Backend(seaweed.new_folder())
    backend.create(rows([1]))
    table = source(backend.address)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert secret.encode() not in pickle.dumps((table, table.pin(None), table.files(0)))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{secret}-wrong")
    with pytest.raises(RunError, match="cannot be read") as error:
        table.pin(None)
    assert secret not in str(error.value)
