"""What Iceberg does as a feature table beyond the contract: lost answers, branches, other writers, rollbacks."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import requests
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import LongType, StringType

from tests.lake.backend_iceberg import Backend, catalog
from tests.lake.backends import make_backend, rows
from tests.lake.features import FEATURE_SET, Features, definition, features_of, state
from varve.config.table_address import parse_table_address
from varve.errors import JobError, RunError
from varve.lake.iceberg.catalog import open_catalog
from varve.lake.iceberg.iceberg_table import IcebergTable
from varve.lake.table import Change, HeadMovedError, NewFile, PartitionField, State


@pytest.fixture(params=["iceberg-sqlite", "iceberg-rest"])
def lake(request, tmp_path, monkeypatch) -> Backend:
    """A catalog on sqlite with files on disk, or one in SeaweedFS."""
    return make_backend(request.param, tmp_path, lambda: request.getfixturevalue("seaweed"), monkeypatch)  # pyright: ignore[reportReturnType]


@pytest.fixture
def features(lake) -> Features:
    """An empty feature table."""
    made = features_of(lake)
    made.table.prepare(definition())
    return made


@pytest.fixture
def commits(features, monkeypatch) -> Callable:
    """(fault, number of the request) → that request of commits fails so; other requests pass."""
    opened, count = open_catalog("lake"), [0]
    send = opened.commit_table

    def fail(fault: Callable[[Callable], None], number: int) -> None:
        def commit(table, requirements, updates):
            count[0] += 1
            if count[0] == number:
                fault(lambda: send(table, requirements, updates))
            return send(table, requirements, updates)

        monkeypatch.setattr(opened, "commit_table", commit)

    return fail


def lose_answer(send: Callable) -> None:
    send()
    msg = "the answer was lost"
    raise requests.exceptions.ConnectionError(msg)


def lose_request(_send: Callable) -> None:
    msg = "the request was lost"
    raise requests.exceptions.ConnectionError(msg)


def feature_files(features: Features):
    return backend_of(features).table(features.backend.features_address)


def backend_of(features: Features) -> Backend:
    assert isinstance(features.backend, Backend)
    return features.backend


def branches(features: Features) -> set[str]:
    return set(feature_files(features).refs()) - {"main"}


def num_snapshots(features: Features) -> int:
    return len(feature_files(features).snapshots())


@pytest.mark.parametrize("fault", [lose_answer, lose_request])
@pytest.mark.parametrize("number", [1, 2])
def test_fault_of_the_stage_or_publish_request_leaves_one_snapshot(features, commits, fault, number):
    change = features.change(1, [features.write([1, 2])])
    commits(fault, number)
    staged = features.table.stage(change)
    assert features.table.commit(change) == staged
    assert features.keys() == [1, 2]
    assert (num_snapshots(features), branches(features)) == (1, set())
    assert features.table.state(FEATURE_SET) == state(1)


@pytest.mark.parametrize("number", [1, 2])
def test_head_that_moves_just_before_the_stage_or_publish_request_is_seen(features, commits, number):
    features.add(1, [1, 2])
    change = features.change(2, [features.write([3])])
    commits(lambda _send: feature_files(features).delete("doc_id = 1"), number)

    def drive() -> None:
        features.table.stage(change)
        features.table.commit(change)

    with pytest.raises(HeadMovedError):
        drive()
    assert features.keys() == [2]
    assert features.table.state(FEATURE_SET) == state(1)


def test_run_that_another_driver_published_is_not_staged_again_on_the_new_head(features):
    """A driver may read the state before that commit, and the head after it."""
    part = features.write([1])
    head = features.table.commit(features.change(1, [part]))
    late = Change(head, state(1), [part])
    with pytest.raises(HeadMovedError):
        features.table.stage(late)
    assert features.table.commit(late) == head
    assert (features.keys(), branches(features), num_snapshots(features)) == ([1], set(), 1)


def test_catalog_that_never_takes_a_commit_ends_the_run_by_name(features, monkeypatch):
    change = features.change(1, [features.write([1])])
    monkeypatch.setattr("varve.lake.iceberg.commit._MAX_ATTEMPTS", 3)

    def refuse(*_arguments):
        lose_request(lambda: None)

    monkeypatch.setattr(open_catalog("lake"), "commit_table", refuse)
    with pytest.raises(RunError, match=r"the request was lost: run the same command again"):
        features.table.commit(change)


def test_third_of_the_answers_of_the_catalog_are_503_and_nothing_is_lost_or_doubled(request, features, monkeypatch):
    if "rest" not in request.node.name:
        pytest.skip("the catalog on sqlite sends no requests")
    chance, send = random.Random(0), requests.Session.send
    faults = []

    def unreliable(session, prepared, **options):
        if chance.random() < 0.3:
            response = requests.Response()
            response.status_code, response.request, response.url = 503, prepared, prepared.url
            faults.append(prepared.url)
            return response
        return send(session, prepared, **options)

    parts = [features.write([index]) for index in range(8)]
    with monkeypatch.context() as patch:
        patch.setattr(requests.Session, "send", unreliable)
        for index, part in enumerate(parts):
            features.table.commit(features.change(index + 1, [part]))
    assert len(faults) > 3
    assert features.keys() == list(range(8))
    assert num_snapshots(features) == 8


def test_control_the_same_files_added_by_two_drivers_of_pyiceberg_are_doubled(features):
    """Why commits have ids of their own: pyiceberg adds files again on top of a commit that came first."""
    part = features.write([1, 2])
    first, second = (feature_files(features) for _ in range(2))
    first.add_files([part.path])
    second.add_files([part.path])
    assert features.keys() == [1, 1, 2, 2]


def test_branch_of_an_interrupted_run_is_dropped_when_another_run_commits(features):
    head = features.add(1, [1])
    abandoned = Change(head, state(2, "interrupted"), [features.write([2])])
    features.table.stage(abandoned)
    feature_files(features).manage_snapshots().create_branch(head, "varve_of_a_user").commit()
    assert len(branches(features)) == 2
    change = features.change(3, [features.write([3])])
    features.table.stage(change)
    assert len(branches(features)) == 3
    features.table.commit(change)
    assert branches(features) == {"varve_of_a_user"}
    assert features.keys() == [1, 3]
    assert num_snapshots(features) == 2


def test_branch_of_an_interrupted_run_is_dropped_by_the_next_stage_on_a_moved_head(features):
    abandoned = features.change(1, [features.write([1])])
    features.table.stage(abandoned)
    [left] = branches(features)
    feature_files(features).add_files([features.write([5]).path])  # by another program
    change = features.change(2, [features.write([2])])
    features.table.stage(change)
    assert left not in branches(features)
    assert len(branches(features)) == 1
    assert num_snapshots(features) == 2


def test_commit_after_the_branch_was_dropped_stages_it_again(features):
    change = features.change(1, [features.write([1])])
    staged = features.table.stage(change)
    features.table.unstage(change)
    features.table.unstage(change)
    assert (num_snapshots(features), branches(features)) == (0, set())
    assert features.table.commit(change) == staged
    assert (num_snapshots(features), branches(features), features.keys()) == (1, set(), [1])


def test_column_added_by_another_writer_between_stage_and_commit_stays(features):
    change = features.change(1, [features.write([1])])
    features.table.stage(change)
    with feature_files(features).update_schema() as update:
        update.add_column("note", StringType())
    features.table.commit(change)
    assert features.backend.read(features.backend.features_address)["note"].to_pylist() == [None]


def test_row_deleted_by_another_writer_between_stage_and_commit_moves_the_head(features):
    features.add(1, [1, 2])
    change = features.change(2, [features.write([3])])
    features.table.stage(change)
    feature_files(features).delete("doc_id = 1")
    with pytest.raises(HeadMovedError):
        features.table.commit(change)
    features.table.unstage(change)
    features.table.commit(Change(features.head(), change.state, change.adds))
    assert (features.keys(), branches(features)) == ([2, 3], set())


def test_state_follows_a_rollback_of_the_table(features):
    first = features.add(1, [1])
    features.add(2, [2])
    feature_files(features).manage_snapshots().set_current_snapshot(first).commit()
    assert features.keys() == [1]
    assert features.table.state(FEATURE_SET) == state(1)
    features.add(2, [2])
    assert features.table.state(FEATURE_SET) == state(2)
    assert features.keys() == [1, 2]


def test_state_is_kept_when_its_snapshot_has_expired(features):
    first = features.add(1, [1])
    table = feature_files(features)
    table.delete("doc_id = 1")
    table.maintenance.expire_snapshots().by_id(first).commit()
    assert features.table.state(FEATURE_SET) == state(1)


def test_eight_writers_at_once_all_land(features):
    parts = [features.write([index]) for index in range(8)]
    gate, errors = threading.Barrier(8), []

    def drive(index: int) -> None:
        gate.wait(30)
        while True:
            own = State(f"{index:02x}" * 32, "source", 1, f"run {index}", "/out")
            try:
                features.table.commit(Change(features.head(), own, [parts[index]]))
            except HeadMovedError:
                continue
            except Exception as e:  # noqa: BLE001 (asserted below)
                errors.append(e)
            return

    threads = [threading.Thread(target=drive, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert features.keys() == list(range(8))
    assert [features.table.state(f"{index:02x}" * 32) is not None for index in range(8)] == [True] * 8


def test_race_of_two_drivers_leaves_no_manifest_that_no_snapshot_has(request, features, tmp_path):
    if "sqlite" not in request.node.name:
        pytest.skip("reads the folder of the metadata")
    change = features.change(1, [features.write([1])])
    gate, staged = threading.Barrier(6), []

    def drive() -> None:
        gate.wait(30)
        staged.append(features.table.stage(change))

    threads = [threading.Thread(target=drive) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(staged)) == 1
    table = feature_files(features)
    snapshot = table.snapshot_by_id(staged[0])
    assert snapshot is not None
    reachable = {snapshot.manifest_list, *(each.manifest_path for each in snapshot.manifests(table.io))}
    written = Path(table.location().removeprefix("file://"), "metadata").glob("*.avro")
    assert {f"file://{path}" for path in written} == reachable


def test_commit_opens_no_data_file(features):
    folder = features.table.folder
    change = features.change(1, [NewFile(f"{folder}/run/not-there.parquet", 3, 100, "[]", (1, 3))])
    version = features.table.commit(change)
    [file] = features.table.files(version, "doc_id")
    assert (file.num_rows, file.key_range, file.file_bytes) == (3, (1, 3), 100)


def test_details_and_run_are_in_the_history_of_the_table(features):
    features.add(1, [1])
    snapshot = feature_files(features).current_snapshot()
    assert snapshot
    assert snapshot.summary
    summary = snapshot.summary.additional_properties
    assert (summary["varve.run"], summary["varve.rows-new"]) == ("run of 1", "3")
    assert (summary["added-records"], summary["total-records"]) == ("1", "1")


def test_text_key_has_bounds(features):
    schema = definition().schema.set(1, definition().schema.field("doc_id").with_type(pa.string()))
    table = IcebergTable(parse_table_address(f"{features.backend.features_address}_text"))
    table.prepare(definition(schema=schema))
    path = f"{table.folder}/run/a.parquet"
    version = table.commit(Change(None, state(1), [NewFile(path, 2, 100, "[]", ("a", "ö"))]))
    assert table.files(version, "doc_id")[0].key_range == ("a", "ö")


def test_bucket_partition_of_a_source_becomes_that_of_its_features(lake):
    features = features_of(lake)
    features.table.prepare(definition(partition=(PartitionField("doc_id_bucket", "doc_id", "bucket[4]"),)))
    number = BucketTransform(4).transform(LongType())(7)
    features.table.commit(features.change(1, [features.write([7], f"[{number}]")]))
    assert feature_files(features).scan("doc_id = 7").to_arrow()["doc_id"].to_pylist() == [7]
    assert features.table.pin(None).partition == (PartitionField("doc_id_bucket", "doc_id", "bucket[4]"),)


@pytest.mark.parametrize("partition", ["[]", '["de", "en"]'])
def test_file_without_the_values_of_the_partition_is_refused(lake, partition):
    features = features_of(lake)
    features.table.prepare(definition(partition=(PartitionField("lang", "lang"),)))
    with pytest.raises(JobError, match=r"output\.partition: none"):
        features.table.stage(features.change(1, [features.write([1], partition)]))


def test_destination_of_format_version_3_is_refused_by_name(request, lake):
    if "rest" not in request.node.name:
        pytest.skip("pyiceberg itself cannot make such a table")
    schema = rows([]).schema
    catalog().create_table(f"{lake.namespace}.docs_features", schema, properties={"format-version": "3"})
    with pytest.raises(JobError, match="format version 3"):
        features_of(lake).table.prepare(definition())


def test_folder_of_runs_lies_below_the_location_and_has_an_underscore(features):
    assert features.table.folder == f"{feature_files(features).location()}/_varve"


def test_table_properties_hold_no_credential(features):
    features.add(1, [1])
    secrets = [value for key, value in catalog().properties.items() if "secret" in key or key == "credential"]
    stored = str(feature_files(features).metadata)
    assert not any(secret in stored for secret in secrets)


def test_private_names_of_pyiceberg_that_commits_use_exist(features):
    """Otherwise the version bound of pyiceberg was raised without a look at varve/lake/iceberg/snapshot.py."""
    producer = feature_files(features).transaction().update_snapshot().fast_append()
    assert isinstance(producer._snapshot_id, int)  # noqa: SLF001
    assert callable(producer._commit)  # noqa: SLF001
