import json
from typing import Any

import pytest

from varve.monitoring.run_history import (
    HISTORY_FOLDER,
    MAX_BYTES,
    Event,
    History,
    PartSpan,
    ReplicaHistory,
    read_histories,
)
from varve.storage.object_store import Storage

HISTORY = History(
    started_at=1.7e9,
    updated_s=3.5,
    outcome="running",
    reason="",
    before_s={"ray": 1.0},
    bin_s=1.0,
    rows=(1, 2),
    tokens=(3, 4),
    errors=(0, 1),
    stages={"encode": (0.5, 0.25)},
    replicas=(ReplicaHistory(number=0, node="127.0.0.1", ready_s=(1.0,), tokens=(3, 4)),),
    parts=(PartSpan(shard=0, start=0, stop=3, replica=0, begun_s=1.0, ended_s=None, tokens=7, errors=1),),
    parts_left_out=0,
    events=(Event(at_s=1.0, kind="part_lost", text="rows [0, 3) of shard 0"),),
)
CONTENT = json.loads(HISTORY.encode())


def with_first(key: str, **values: Any) -> dict[str, Any]:
    return {key: [{**CONTENT[key][0], **values}]}


def test_history_that_is_decoded_equals_the_one_encoded():
    assert History.decode(HISTORY.encode()) == HISTORY


@pytest.mark.parametrize(
    "change",
    [
        {"bin_s": float("nan")},
        {"bin_s": 0},
        {"bin_s": True},
        {"updated_s": float("inf")},
        {"updated_s": -1},
        {"rows": [1]},
        {"rows": [1, -2]},
        {"rows": [1, 2.5]},
        {"rows": ["1", 2]},
        {"rows": [1, 10**30]},
        {"stages": {"encode": [1.0]}},
        {"stages": {"<script>": [1.0, 1.0]}},
        {"outcome": "fine"},
        {"reason": "x" * 501},
        {"reason": "\ud800"},
        {"unknown": 1},
        {"parts": [CONTENT["parts"][0]] * 2001},
        {"replicas": CONTENT["replicas"] * 2},
        with_first("parts", unknown=1),
        with_first("parts", stop=-1),
        with_first("parts", start=4),
        with_first("parts", ended_s=0.5),
        with_first("replicas", tokens=[1]),
        with_first("events", kind=""),
        with_first("events", text=None),
    ],
)
def test_content_that_no_run_writes_is_refused(change: dict[str, Any]):
    with pytest.raises(ValueError, match=r"."):
        History.decode(json.dumps(CONTENT | change).encode())


@pytest.mark.parametrize(
    "content", [b"", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b" " * (MAX_BYTES + 1) + HISTORY.encode()]
)
def test_bytes_that_are_no_history_are_refused(content: bytes):
    with pytest.raises(ValueError, match=r"."):
        History.decode(content)


def test_history_without_a_field_is_refused():
    for name in CONTENT:
        with pytest.raises(ValueError, match=name):
            History.decode(json.dumps({key: value for key, value in CONTENT.items() if key != name}).encode())


def test_histories_are_read_oldest_first_and_damaged_ones_left_out(tmp_path, caplog):
    storage = Storage(str(tmp_path))
    assert read_histories(storage) == []
    for name, content in {
        "b.json": {**CONTENT, "started_at": 1.6e9},
        "c.json": {**CONTENT, "rows": "x"},
        "a.json": CONTENT,
        "d.txt": CONTENT,
    }.items():
        storage.create(f"{HISTORY_FOLDER}/{name}", json.dumps(content).encode())
    storage.create(f"{HISTORY_FOLDER}/e.json", b" " * (MAX_BYTES + 1))
    assert [history.started_at for history in read_histories(storage)] == [1.6e9, 1.7e9]
    assert sorted(record.args[1] for record in caplog.records) == ["_varve/history/c.json", "_varve/history/e.json"]
