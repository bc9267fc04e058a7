"""Runs on a Lance dataset that die at any step, lose answers, or find damaged files."""

from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from tests.lake.backend_lance import Backend
from tests.lake.backends import rows
from tests.lake.in_place_run import InPlaceRun, missing, vector
from tests.lake.lance_commits import commits_of_runs, counts, data_files
from varve.errors import RunError

STEPS = ("select", "part", "publish", "write_fragment", "verify_fragment")


class CrashError(Exception):
    """Stands for the death of a driver."""


@pytest.fixture(params=[False, True], ids=["", "stable-row-ids"])
def local(request, tmp_path) -> Backend:
    made = Backend(str(tmp_path), request.param)
    made.create(rows(range(35)))
    return made


@pytest.fixture
def run(local, tmp_path) -> InPlaceRun:
    return InPlaceRun(local, tmp_path / "runs")


def _kill(docs: Backend, tmp_path: Path, step: str) -> None:
    def crash() -> None:
        raise CrashError

    with pytest.raises(CrashError):
        InPlaceRun(docs, tmp_path / "runs", on={step: crash}).go()
    assert docs.open().tags.list()  # the version is protected


def _finish(docs: Backend, tmp_path: Path, expected: dict[str, int]) -> None:
    again = InPlaceRun(docs, tmp_path / "runs")
    assert again.go() == expected
    assert missing(docs) == []
    assert again.go() == {}
    assert docs.open().tags.list() == {}


@pytest.mark.parametrize("step", STEPS)
def test_lance_first_run_killed_at_a_step_continues(local, tmp_path, step):
    _kill(local, tmp_path, step)
    assert "embedding" not in local.open().schema.names
    _finish(local, tmp_path, counts(35, 0, 0))
    assert commits_of_runs(local) == ["Merge"]


@pytest.mark.parametrize("step", STEPS)
def test_lance_later_run_killed_at_a_step_continues(local, tmp_path, step):
    InPlaceRun(local, tmp_path / "runs").go()
    local.append(rows([40, 41]))
    local.update_text(5, "changed")
    _kill(local, tmp_path, step)
    assert missing(local) == [40, 41, 5]
    _finish(local, tmp_path, counts(2, 1, 34))
    assert commits_of_runs(local) == ["Merge", "Update"]


@pytest.mark.parametrize("operation", ["Merge", "Update", "UpdateConfig"])
def test_lance_run_whose_commit_lost_its_answer_is_not_committed_again(local, run, monkeypatch, operation):
    if operation != "Merge":
        run.go()
        local.append(rows([40]))
    with monkeypatch.context() as patched:
        patched.setattr(lance.LanceDataset, "commit", staticmethod(_losing_answer_of(operation)))
        with pytest.raises(RunError, match="connection reset"):
            run.go()
    assert missing(local) == []
    encoded = run.encoded
    run.go()
    assert run.encoded == encoded
    assert missing(local) == []
    assert commits_of_runs(local) == (["Merge"] if operation == "Merge" else ["Merge", "Update"])
    assert run.go() == {}


def _losing_answer_of(operation):
    commit = lance.LanceDataset.commit

    def lose_answer(uri, transaction, **options):
        result = commit(uri, transaction, **options)
        if type(transaction.operation).__name__ == operation:
            msg = "connection reset"
            raise OSError(msg)
        return result

    return lose_answer


def test_lance_file_that_changed_after_it_was_written_is_found_before_readers_see_it(local, run):
    before = set(data_files(local))

    value = pa.array(vector("text 3", "embedding"), pa.float32()).to_numpy().tobytes()

    def flip() -> None:
        written = (Path(local.uri) / "data" / name for name in set(data_files(local)) - before)
        (file,) = (path for path in written if value in path.read_bytes())
        content = bytearray(file.read_bytes())
        content[content.index(value)] ^= 1
        file.write_bytes(content)

    run.on = {"verify_fragment": flip}
    version = run.columns.table.pin(None).version
    with pytest.raises(RunError, match=r"not those of the parts.*Run the same command again"):
        run.go()
    assert local.open().version == version
    run.on = {}
    run.go()
    assert missing(local) == []
    assert run.encoded == 35  # the second call has repeated no part


def test_lance_file_that_was_removed_after_it_was_written_is_written_again(local, run):
    before = set(data_files(local))

    def remove() -> None:
        (Path(local.uri) / "data" / min(set(data_files(local)) - before)).unlink()

    run.on = {"verify_fragment": remove}
    with pytest.raises(RunError, match="Run the same command again"):
        run.go()
    run.on = {}
    run.go()
    assert missing(local) == []


def test_lance_part_that_changed_is_refused(local, run, tmp_path):
    def flip() -> None:
        file = min((tmp_path / "runs").rglob("part-*.parquet"))
        content = bytearray(file.read_bytes())
        content[20] ^= 1
        file.write_bytes(content)

    run.on = {"publish": flip}
    with pytest.raises(RunError, match="is damaged"):
        run.go()
    assert "embedding" not in local.open().schema.names


def test_lance_interrupted_run_keeps_its_version_though_another_writer_commits(local, tmp_path):
    _kill(local, tmp_path, "publish")
    local.append(rows([40]))
    again = InPlaceRun(local, tmp_path / "runs")
    assert again.go() == counts(35, 0, 0)
    assert missing(local) == [40]
    assert again.go() == counts(1, 0, 35)
    assert missing(local) == []


def test_lance_pinned_version_outlives_a_cleanup_during_the_run(local, run):
    def clean() -> None:
        local.append(rows([40]))
        options = {"older_than": timedelta(0), "error_if_tagged_old_versions": False}
        local.open().cleanup_old_versions(**options)

    run.on = {"publish": clean}
    assert run.go() == counts(35, 0, 0)
    assert missing(local) == [40]
    run.on = {}
    assert run.go() == counts(1, 0, 35)
    assert missing(local) == []


def test_lance_tag_of_a_run_that_died_after_its_commit_does_not_hold_the_next_run_back(local, run, monkeypatch):
    def crash(*_args) -> None:
        raise CrashError

    with monkeypatch.context() as patched:
        patched.setattr("varve.backfill.in_place.lance_columns.delete_tag", crash)
        with pytest.raises(CrashError):
            run.go()
    assert missing(local) == []
    assert local.open().tags.list()
    local.append(rows([40]))
    assert run.go() == counts(1, 0, 35)
    assert missing(local) == []
    assert local.open().tags.list() == {}
