"""A replica without Ray: its reports go to counters in the same process."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.crashing_model import KILLING_TEXT
from varve.config.job import Job
from varve.errors import RunError
from varve.monitoring.block import Block
from varve.monitoring.reporter import MAX_DEATHS
from varve.monitoring.run_counters import RunCounters, Verdict
from varve.planning.saved_plan import prepare
from varve.ranges import Range
from varve.storage.object_store import Storage
from varve.workers.part_message import PartMessage, pack_message, unpack_message
from varve.workers.replica import Replica


class LocalReporter:
    """Reports to counters in this process."""

    def __init__(self, counters: RunCounters) -> None:
        self.begin, self.end, self.spend, self.stopped = counters.begin, counters.end, counters.spend, counters.stopped
        self._counters = counters

    def join(self, encoder) -> None:
        self._counters.join(encoder, "replica", "127.0.0.1")

    def count(self, block: Block, part: Range, *, wait: bool) -> Verdict:  # noqa: ARG002 (the answer is always available)
        return self._counters.add(block, part)


@pytest.fixture
def part(tmp_path):
    """(texts, sections of a job) → a replica, and a part that has crashed this many workers before."""

    def make(texts, *, deaths=MAX_DEATHS, **sections) -> tuple[Replica, PartMessage]:
        table = pa.table({"text": texts})
        (tmp_path / "docs").mkdir()
        pq.write_table(table, tmp_path / "docs/0.parquet")
        source, output = {"dataset": str(tmp_path / "docs"), "text": "text"}, {"path": str(tmp_path / "out")}
        content = {"source": source, **sections, "output": output | sections.get("output", {})}
        plan = prepare(Job.parse(content).in_folder(str(tmp_path)), Storage(output["path"]), device="cpu")
        rows, counters = Range(0, 0, len(texts)), RunCounters()
        for _ in range(deaths):
            counters.begin("encode", rows)
        return Replica(plan.worker_spec("cpu", 1), LocalReporter(counters)), PartMessage(rows, table)

    return make


def test_crashing_rows_are_listed_if_no_error_is_allowed(part, crashing_model):
    replica, message = part(["good", "good too", KILLING_TEXT], model=crashing_model, output={"max_errors": 0})
    with pytest.raises(RunError, match=r"max_errors: 0\. Most frequent: 1 x worker died.*worker: 2$"):
        replica(pack_message(message))


def test_share_of_failed_rows_above_the_limit_ends_the_run_with_its_reasons(part, tiny):
    broken = pa.array([b"\xff" if row % 5 == 0 else b"good" for row in range(100)]).view(pa.string())
    replica, message = part(broken, model={"name": tiny("bert")}, deaths=0)
    with pytest.raises(RunError, match=r"20 rows failed.*1% \(10 rows\)\. Most frequent: 20 x .*UTF-8"):
        replica(pack_message(message))


def test_null_texts_are_no_failures(part, tiny):
    texts = pa.array([None if row % 5 == 0 else "good" for row in range(100)])
    replica, message = part(texts, model={"name": tiny("bert")}, output={"max_errors": 0}, deaths=0)
    assert unpack_message(replica(pack_message(message))).table["error"].null_count == 80


def test_two_threads_encode_the_same_rows_as_one(part, tiny):
    texts = [f"text {row} " * (row % 9) for row in range(90)]
    replica, whole = part(texts, model={"name": tiny("bert"), "max_tokens": 64})
    parts = [pack_message(PartMessage(Range(0, at, at + 10), whole.table.slice(at, 10))) for at in range(0, 90, 10)]
    one_by_one = [unpack_message(replica(packed)) for packed in parts]
    with ThreadPoolExecutor(2) as calls:
        two_at_a_time = [unpack_message(done) for done in calls.map(replica, parts)]
    for got, want in zip(two_at_a_time, one_by_one, strict=True):
        assert got.rows == want.rows
        assert got.table.equals(want.table)


KILL = """
import os
import pyarrow.compute as pc

def kill(rows):
    if "xylophone" in rows["text"].to_pylist():
        os._exit(9)
    return pc.utf8_length(rows["text"])
"""


@pytest.mark.slow
def test_row_on_which_a_function_crashes_does_not_affect_others(part, tiny, tmp_path):
    (tmp_path / "my_features.py").write_text(KILL)
    texts = ["xylophone" if row == 5 else f"text {row}" for row in range(8)]
    features = {"mean": {"pool": "mean"}, "kill": {"python": "my_features:kill", "type": "int32"}}
    replica, message = part(texts, model={"name": tiny("bert"), "max_tokens": 64}, features=features)
    done = unpack_message(replica(pack_message(message)))
    assert done.table["error"].to_pylist() == ["worker died" if row == 5 else None for row in range(8)]
    assert done.table["kill"].to_pylist() == [None if row == 5 else len(text) for row, text in enumerate(texts)]
    assert done.table["mean"].null_count == 1
    assert done.counts["killers"] == 1
