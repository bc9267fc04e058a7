"""Drivers of a table are killed at each step, or run twice at once; each row has its features once afterwards."""

import multiprocessing
import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.faults.backfill_build import run_backfill, steps_of
from tests.lake.backends import Backend, make_backend, rows
from varve.config.table_address import parse_table_address
from varve.lake.open_table import open_table
from varve.lake.text_hash import hash_texts

ROWS, ADDED = 30, [1000, 1001, 1002]
KINDS = {"iceberg": "iceberg-sqlite", "delta": "delta-disk", "lance": "lance-disk"}
# Before a step is after the one before it.
DEATHS = [(kind, (step, "after")) for kind in KINDS for step in range(len(steps_of(kind)))]


@pytest.fixture(scope="module")
def context():
    """Starts processes that are forked from a server without threads; Lance is not in it, for it cannot be forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.backfill_build"])
    return context


class Tables:
    """A source with some rows that have features and some that changed since."""

    def __init__(self, kind: str, backend: Backend, model: str, context) -> None:
        self.kind, self.backend, self.context = kind, backend, context
        in_place = kind == "lance"
        self.job = {
            "source": {"table": backend.address, "text": "body", **({} if in_place else {"key": "doc_id"})},
            "model": {"name": model},
            "features": {"embedding": {"pool": "mean"}},
            "output": {"table": backend.address if in_place else backend.features_address},
        }
        backend.create(rows(range(ROWS)))
        assert self.run(None) == [0]
        backend.append(rows(ADDED))
        backend.update(rows([3, 5], "changed {}"))
        backend.delete([8])

    def run(self, *deaths: tuple[int, str] | None) -> list[int]:
        """Run one driver per death at once; returns their exit codes."""
        environment = {name: value for name, value in os.environ.items() if name.startswith("PYICEBERG")}
        drivers = [
            self.context.Process(target=run_backfill, args=(environment, self.job, self.kind, death))
            for death in deaths
        ]
        for driver in drivers:
            driver.start()
        for driver in drivers:
            driver.join()
        return [driver.exitcode for driver in drivers]

    @property
    def version(self) -> int | None:
        return open_table(parse_table_address(self.job["output"]["table"])).pin(None).version

    def check(self) -> None:
        """Each row of the source has features of its text, once."""
        source = self.backend.read(self.backend.address).sort_by("doc_id")
        assert source["doc_id"].to_pylist() == sorted({*range(ROWS), *ADDED} - {8})
        found = source if self.kind == "lance" else self.backend.read(self.backend.features_address).sort_by("doc_id")
        column = "embedding_hash" if self.kind == "lance" else "text_hash"
        assert found["doc_id"].to_pylist() == source["doc_id"].to_pylist()
        assert found[column].cast(pa.binary()).to_pylist() == hash_texts([source["body"]]).to_pylist()
        assert pc.list_value_length(found["embedding"]).to_pylist() == [32] * len(found)


@pytest.fixture
def tables(tmp_path: Path, monkeypatch, tiny, context):
    def make(kind: str) -> Tables:
        return Tables(kind, make_backend(KINDS[kind], tmp_path, lambda: None, monkeypatch), tiny("bert"), context)

    return make


@pytest.mark.parametrize(("kind", "death"), DEATHS)
def test_driver_killed_at_a_step_is_followed_by_one_that_ends_the_run(tables, kind, death):
    made = tables(kind)
    assert made.run(death) == [-signal.SIGKILL]
    assert made.run(None) == [0]
    made.check()
    version = made.version
    assert made.run(None) == [0]
    assert made.version == version


@pytest.mark.parametrize("kind", KINDS)
def test_two_drivers_started_together_end_with_one_commit(tables, kind):
    made = tables(kind)
    before = made.version
    assert made.run(None, None) == [0, 0]
    made.check()
    assert made.version != before
