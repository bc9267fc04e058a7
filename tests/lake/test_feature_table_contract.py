"""What every format does as a feature table: one atomic commit, made once, on its head and with its state."""

import pyarrow as pa
import pytest

from tests.lake.backends import rows
from tests.lake.features import (
    BY_LANGUAGE,
    COLUMNS,
    FEATURE_SET,
    definition,
    feature_rows,
    state,
)
from varve.config.table_address import parse_table_address
from varve.errors import JobError
from varve.lake.open_table import open_feature_table
from varve.lake.table import Change, HeadMovedError


def test_prepare_twice_makes_one_empty_table(features):
    assert not features.table.exists()
    assert features.table.state(FEATURE_SET) is None
    features.table.prepare(definition())
    uuid = features.table.pin(None).uuid
    features.table.prepare(definition())
    assert features.table.exists()
    assert features.table.pin(None).uuid == uuid
    assert features.table.pin(None).schema.names == COLUMNS.names
    assert features.keys() == []


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"key": "num_tokens"}, "doc_id"),
        ({"feature_set": "00" * 32}, "f5f5"),
        ({"source_uuid": "another"}, "6fe1-source"),
        ({"partition": BY_LANGUAGE}, "partition"),
        ({"schema": COLUMNS.set(4, pa.field("num_tokens", pa.string()))}, "num_tokens"),
    ],
)
def test_prepare_another_definition_is_refused(prepared, changes, shown):
    with pytest.raises(JobError, match=shown):
        prepared.table.prepare(definition(**changes))


def test_prepare_table_that_varve_did_not_make_is_refused(features):
    features.backend.create(rows(range(3)))
    foreign = open_feature_table(parse_table_address(features.backend.address))
    with pytest.raises(JobError, match="docs"):
        foreign.prepare(definition())


def test_prepare_list_of_float16_is_refused(features):
    halves = COLUMNS.set(3, pa.field("embedding", pa.list_(pa.float16(), 4)))
    with pytest.raises(JobError, match="float32"):
        features.table.prepare(definition(schema=halves))
    assert not features.table.exists()


def test_prepare_adds_a_missing_column_and_old_rows_are_null_in_it(prepared):
    prepared.add(1, [1, 2])
    prepared.table.prepare(definition(schema=COLUMNS.append(pa.field("topic", pa.string()))))
    version = prepared.head()
    [file] = prepared.table.files(version)
    [batch] = list(prepared.table.read(version, file, ["doc_id", "topic"]))
    assert batch.to_pydict() == {"doc_id": [1, 2], "topic": [None, None]}
    assert prepared.table.state(FEATURE_SET) == state(1)


def test_commit_makes_files_and_state_visible_together(prepared):
    change = prepared.change(7, [prepared.write([1, 2]), prepared.write([3])])
    staged = prepared.table.stage(change)
    assert prepared.keys() == []
    assert prepared.table.state(FEATURE_SET) is None
    version = prepared.table.commit(change)
    assert staged in {None, version}
    assert prepared.keys() == [1, 2, 3]
    assert prepared.table.state(FEATURE_SET) == state(7)
    assert prepared.table.state("00" * 32) is None
    assert prepared.head() == version


def test_committed_rows_are_those_of_the_files_to_every_reader(prepared):
    prepared.add(1, range(5))
    stored = prepared.backend.read(prepared.backend.features_address)
    wanted = feature_rows(range(5))
    assert stored["embedding"].to_pylist() == wanted["embedding"].to_pylist()
    assert [bytes(each) for each in stored["text_hash"].to_pylist()] == wanted["text_hash"].to_pylist()
    version = prepared.head()
    [file] = prepared.table.files(version, "doc_id")
    assert (file.num_rows, file.key_range) == (5, (0, 4))
    [batch] = list(prepared.table.read(version, file, ["embedding", "doc_id"]))
    assert batch["embedding"].to_pylist() == wanted["embedding"].to_pylist()


def test_stage_makes_a_version_with_the_rows_that_readers_do_not_see(prepared):
    change = prepared.change(1, [prepared.write([1, 2])])
    staged = prepared.table.stage(change)
    if staged is None:
        pytest.skip("the format has no versions that readers do not see")
    assert prepared.table.stage(change) == staged
    [file] = prepared.table.files(staged)
    assert [batch["doc_id"].to_pylist() for batch in prepared.table.read(staged, file, ["doc_id"])] == [[1, 2]]
    assert (prepared.keys(), prepared.head()) == ([], None)
    prepared.table.unstage(change)
    assert prepared.table.commit(change) == staged


def test_commit_twice_is_one_version(prepared):
    change = prepared.change(1, [prepared.write([1, 2])])
    prepared.table.stage(change)
    first = prepared.table.commit(change)
    assert prepared.table.commit(change) == first
    assert prepared.head() == first
    assert prepared.keys() == [1, 2]


def test_commit_with_removed_files_replaces_them_in_one_version(prepared):
    prepared.add(1, [1, 2])
    head = prepared.add(2, [3, 4])
    old = [file for file in prepared.table.files(head, "doc_id") if file.key_range == (1, 2)]
    assert len(old) == 1
    change = prepared.change(3, [prepared.write([2]), prepared.write([5])], old)
    prepared.table.stage(change)
    assert prepared.keys() == [1, 2, 3, 4]
    version = prepared.table.commit(change)
    assert prepared.keys() == [2, 3, 4, 5]
    assert old[0].path not in {file.path for file in prepared.table.files(version)}
    assert prepared.table.state(FEATURE_SET) == state(3)


def test_commit_without_files_changes_the_state_alone(prepared):
    head = prepared.add(1, [1])
    files = prepared.table.files(head)
    prepared.table.commit(Change(head, state(2)))
    assert prepared.table.state(FEATURE_SET) == state(2)
    assert prepared.table.files(prepared.head()) == files


def test_commit_of_an_empty_source_leaves_an_empty_table_with_a_state(prepared):
    prepared.table.commit(prepared.change(1))
    assert prepared.table.state(FEATURE_SET) == state(1)
    assert prepared.keys() == []


def test_commit_on_a_moved_head_changes_nothing(prepared):
    head = prepared.add(1, [1])
    change = Change(head, state(2), [prepared.write([2])])
    staged = prepared.table.stage(change)
    prepared.add(3, [3])
    with pytest.raises(HeadMovedError):
        prepared.table.commit(change)
    if staged is not None:
        with pytest.raises(HeadMovedError):
            prepared.table.stage(change)
    with pytest.raises(HeadMovedError):
        prepared.table.commit(Change(head, state(4)))
    assert prepared.keys() == [1, 3]
    assert prepared.table.state(FEATURE_SET) == state(3)


def test_commit_after_a_moved_head_keeps_the_other_rows(prepared):
    head = prepared.add(1, [1])
    part = prepared.write([2])
    change = Change(head, state(2), [part])
    prepared.table.stage(change)
    prepared.add(3, [3])
    prepared.table.unstage(change)
    prepared.table.commit(prepared.change(2, [part]))
    assert prepared.keys() == [1, 2, 3]


def test_partition_values_of_files_become_those_of_the_table(features):
    features.table.prepare(definition(partition=BY_LANGUAGE))
    change = features.change(
        1, [features.write([1], '["de"]'), features.write([2], '["en"]', "en"), features.write([3], "[null]", None)]
    )
    version = features.table.commit(change)
    assert sorted(file.partition for file in features.table.files(version)) == ['["de"]', '["en"]', "[null]"]
    stored = features.backend.read(features.backend.features_address).select(["doc_id", "lang"]).sort_by("doc_id")
    assert stored.to_pydict() == {"doc_id": [1, 2, 3], "lang": ["de", "en", None]}
    pin = features.table.pin(version)
    assert [(each.column, each.transform) for each in pin.partition] == [("lang", "identity")]
