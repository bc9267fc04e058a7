"""Runs on a Lance dataset while other writers and other drivers commit."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from tests.lake.backend_lance import Backend
from tests.lake.backends import rows
from tests.lake.in_place_run import InPlaceRun, missing, vector
from tests.lake.lance_commits import commits_of_runs, counts


@pytest.fixture(params=[False, True], ids=["", "stable-row-ids"])
def local(request, tmp_path) -> Backend:
    made = Backend(str(tmp_path), request.param)
    made.create(rows(range(35)))
    return made


@pytest.fixture
def run(local, tmp_path) -> InPlaceRun:
    return InPlaceRun(local, tmp_path / "runs")


CHANGES = {
    "append": (lambda docs: docs.append(rows([70, 71])), {70, 71}),
    "delete": (lambda docs: docs.delete([3, 17]), set()),
    "update": (lambda docs: docs.update_text(4, "changed meanwhile"), {4}),
    "update of another column": (lambda docs: docs.open().update({"lang": "'fr'"}, where="doc_id = 4"), set()),
    "compaction": (lambda docs: docs.compact(), set()),
    "deletes and compaction": (lambda docs: (docs.delete([3, 17]), docs.compact()), set()),
    "column": (lambda docs: docs.open().add_columns({"twice": "doc_id * 2"}), set()),
    "dropped column": (lambda docs: docs.open().drop_columns(["lang"]), set()),
    "renamed text": (lambda docs: docs.open().alter_columns({"path": "lang", "name": "language"}), set()),
    "index": (lambda docs: docs.open().create_scalar_index("doc_id", "BTREE"), set()),
    "all of them": (
        lambda docs: (
            docs.append(rows([70])), docs.open().add_columns({"twice": "doc_id * 2"}), docs.update_text(4, "new"),
            docs.delete([3]), docs.compact(), docs.append(rows([71]).append_column("twice", pa.array([142]))),
        ),
        {70, 71, 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_lance_change_of_another_writer_during_the_first_run_is_kept(local, tmp_path, change):
    make_change, left = CHANGES[change]
    _run_beside(local, tmp_path, make_change, "verify_fragment", left)


@pytest.mark.parametrize("change", CHANGES)
def test_lance_change_of_another_writer_during_a_later_run_is_kept(local, tmp_path, change):
    InPlaceRun(local, tmp_path / "runs").go()
    local.append(rows([40, 41]))
    local.update_text(5, "changed before")
    make_change, left = CHANGES[change]
    _run_beside(local, tmp_path, make_change, "publish", left)


def _run_beside(docs: Backend, tmp_path: Path, change, step: str, left: set[int]) -> None:
    made = []
    run = InPlaceRun(docs, tmp_path / "runs", on={step: lambda: made or made.append((change(docs), _keys(docs)))})
    run.go()
    ((_, keys),) = made
    assert _keys(docs) == keys
    assert set(missing(docs)) == left
    again = InPlaceRun(docs, tmp_path / "runs")
    again.go()
    assert again.encoded == len(left)
    assert missing(docs) == []
    assert _keys(docs) == keys
    assert again.go() == {}


def _keys(docs: Backend) -> list[tuple]:
    """The rows without what Varve wrote."""
    read = docs.read(docs.address)
    names = [name for name in read.column_names if not name.startswith("embedding")]
    return sorted(tuple(row.values()) for row in read.select(names).to_pylist())


def test_lance_vectors_of_rows_that_moved_during_a_later_run_are_found_by_their_text(local, run, tmp_path):
    run.go()
    local.append(rows([40, 41]))
    other = InPlaceRun(local, tmp_path / "runs", on={"publish": local.compact})
    assert other.go() == counts(2, 0, 35)
    assert missing(local) == []


def test_lance_text_column_that_was_renamed_during_the_run_is_read_by_its_id(local, tmp_path):
    def rename() -> None:
        local.open().alter_columns({"path": "body", "name": "content"})
        local.compact()

    InPlaceRun(local, tmp_path / "runs", on={"publish": rename}).go()
    read = local.read(local.address).to_pylist()
    assert all(row["embedding"] == vector(row["content"], "embedding") for row in read)


@pytest.mark.parametrize("round_", range(20))
def test_lance_two_drivers_at_once_make_one_commit(tmp_path, round_):
    docs = Backend(str(tmp_path), stable_row_ids=bool(round_ % 2))
    docs.create(rows(range(25)))
    InPlaceRun(docs, tmp_path).columns.table.pin(None)
    expected = ["Merge"]
    if round_ % 4 > 1:
        InPlaceRun(docs, tmp_path / "runs").go()
        docs.append(rows([40]))
        expected = ["Merge", "Update"]
    barrier = threading.Barrier(2)
    waited = threading.local()

    def meet() -> None:
        if not hasattr(waited, "once"):
            waited.once = True
            with suppress(threading.BrokenBarrierError):  # the other driver has found nothing to do at this step
                barrier.wait(1)

    step = ("select", "publish", "write_fragment", "verify_fragment")[round_ // 4 % 4]
    drivers = [InPlaceRun(docs, tmp_path / "runs", on={step: meet}) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(InPlaceRun.go, drivers))
    assert results[0] == results[1]
    assert missing(docs) == []
    assert commits_of_runs(docs) == expected
    assert docs.open().tags.list() == {}
    assert InPlaceRun(docs, tmp_path / "runs").go() == {}
