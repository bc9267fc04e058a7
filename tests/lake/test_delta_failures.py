"""Delta on a store that fails: answers that are lost after their effect, throttled requests, connections that break."""

import pyarrow as pa
import pytest

from tests.lake.delta_tables import PARTITIONED, add, at_once, change, feature_table, live_keys, version_of, write_file
from tests.lake.features import FEATURE_SET, definition, feature_rows, state
from tests.servers.proxy import Control, proxy
from varve.errors import RunError
from varve.lake.delta.delta_table import DeltaTable
from varve.lake.table import HeadMovedError

LOG = "_delta_log"


@pytest.fixture(scope="module")
def control(seaweed, tmp_path_factory):
    with proxy(seaweed.s3, tmp_path_factory.mktemp("proxy")) as control:
        yield control


@pytest.fixture
def faulty(seaweed, control, monkeypatch) -> Control:
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", control.endpoint)
    control.faults()
    return control


@pytest.fixture
def table(seaweed, faulty) -> DeltaTable:
    assert faulty
    return feature_table(seaweed.new_folder())


def test_lost_answer_of_the_commit_is_found_by_reading(table, faulty):
    table.prepare(definition())
    planned = change(table, 1, [write_file(table, feature_rows([1, 2]))])
    faulty.faults(lost=1, methods="PUT", match=LOG)
    assert table.commit(planned) == 1
    assert faulty.counts()["lost"]  # otherwise this test shows nothing
    faulty.faults()
    assert table.commit(planned) == 1
    assert table.pin(None).version == 1
    assert live_keys(table) == [1, 2]


def test_lost_answer_of_a_commit_that_replaces_a_file_is_found_by_reading(table, faulty):
    table.prepare(definition())
    add(table, 1, [1, 2])
    planned = change(table, 2, [write_file(table, feature_rows([2, 3]))], table.files(1))
    faulty.faults(lost=1, methods="PUT", match=LOG)
    assert table.commit(planned) == 2
    faulty.faults()
    assert live_keys(table) == [2, 3]
    assert table.state(FEATURE_SET) == state(2)


def test_lost_answer_of_the_creation_is_found_by_reading(table, faulty):
    faulty.faults(lost=1, methods="PUT", match=LOG)
    table.prepare(PARTITIONED)
    assert faulty.counts()["lost"]
    faulty.faults()
    table.prepare(PARTITIONED)
    assert table.pin(None).version == 0


def test_commit_without_effect_changes_nothing_and_can_be_repeated(table, faulty):
    table.prepare(definition())
    planned = change(table, 1, [write_file(table, feature_rows([1]))])
    faulty.faults(reset=1, methods="PUT", match=LOG)
    with pytest.raises(RunError, match=r"the commit failed and nothing was changed.*Run the same command again"):
        table.commit(planned)
    faulty.faults()
    assert table.pin(None).version == 0
    assert table.commit(planned) == 1
    assert live_keys(table) == [1]


def test_lost_answer_while_another_driver_commits_the_same_run(table, faulty):
    table.prepare(definition())
    planned = change(table, 1, [write_file(table, feature_rows([1]))])
    faulty.faults(lost=0.5, methods="PUT", match=LOG, seed=3)
    errors = []
    at_once([lambda: table.commit(planned)] * 3, errors)
    faulty.faults()
    assert errors == []
    assert table.pin(None).version == 1
    assert live_keys(table) == [1]


def test_missing_columns_are_added_once_though_the_answer_is_lost(table, faulty):
    table.prepare(definition())
    wider = definition(schema=definition().schema.append(pa.field("title", pa.string())))
    faulty.faults(lost=1, methods="PUT", match=LOG)
    table.prepare(wider)
    assert faulty.counts()["lost"]
    faulty.faults()
    assert table.pin(None).version == 1
    assert "title" in table.pin(None).schema.names


@pytest.mark.parametrize("fault", ["slow_down", "reset", "lost", "truncate"])
def test_a_fifth_of_all_requests_fails_and_every_row_is_there_once(table, faulty, fault):
    faulty.faults(**{fault: 0.2, "seed": 7})
    table.prepare(definition())
    for number in range(1, 3):
        old = [file for file in table.files(number - 1, "doc_id") if file.key_range == (number - 1, number - 1)]
        planned = change(table, number, [write_file(table, feature_rows([number, 100 + number]))], old)
        assert table.commit(planned) == number
        assert table.commit(planned) == number
        assert table.state(FEATURE_SET) == state(number)
    assert faulty.counts()[fault] > 3
    faulty.faults()
    assert live_keys(table) == sorted([1, 2, 101, 102])
    assert version_of(table).version() == 2


def test_head_that_moves_while_requests_fail_is_reported(table, faulty):
    table.prepare(definition())
    planned = change(table, 1, [write_file(table, feature_rows([1]))])
    table.commit(change(table, 2, [write_file(table, feature_rows([2]))]))
    faulty.faults(slow_down=0.2, seed=1)
    with pytest.raises(HeadMovedError):
        table.commit(planned)
