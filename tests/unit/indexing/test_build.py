"""The build of an index: what is published, and what is not."""

import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from tests.index_sources import clustered, open_source, write_source
from tests.outputs import column, write_output
from varve import JobError, index
from varve.cli.main import run_command
from varve.config.index import Index
from varve.indexing import build as build_module
from varve.indexing.build import build
from varve.indexing.faiss.faiss_target import FaissTarget

ROWS, WIDTH, HELD_OUT = 20_000, 64, 3000


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """Enough vectors that recall of IVF is not 1, and an output whose rows are not all of them."""
    folder = tmp_path_factory.mktemp("run") / "features"
    features = {column("embedding", WIDTH, normalize=True): clustered(ROWS + HELD_OUT, WIDTH)[:ROWS]}
    kept = {"doc_id": [f"doc-{row}" for row in range(ROWS)]}
    return write_output(folder, features, kept, rows_per_part=4000)


def settings_of(run: str, folder: Path, **settings) -> Index:
    return Index.parse({"path": run, "to": f"faiss:{folder}", "kind": "IVF128,SQ8", **settings})


def test_reported_recall_is_that_of_held_out_queries(run, tmp_path):
    record = build(settings_of(run, tmp_path / "index", recall=0.9)).record
    measured = next(m for m in record.measurements if m.setting == record.setting)
    vectors, held_out = clustered(ROWS + HELD_OUT, WIDTH)[:ROWS], clustered(ROWS + HELD_OUT, WIDTH)[ROWS:]
    exact = np.sort(held_out @ vectors.T, axis=1)[:, -10]
    opened = faiss.read_index(str(tmp_path / "index/index.faiss"))
    opened.nprobe = record.setting["nprobe"]
    _, found = opened.search(held_out, 10)
    scores = np.einsum("qd,qkd->qk", held_out, vectors[found])
    independent = float(((found >= 0) & (scores >= exact[:, None] - 1e-6)).mean())
    assert measured.recall["10"] == pytest.approx(independent, abs=0.01)
    assert 0.9 <= measured.low <= measured.recall["10"] < 0.999


def shuffle_ids(opened):
    lists = opened.invlists
    random = np.random.default_rng(0)
    for number in range(opened.nlist):
        size = lists.list_size(number)
        if size:
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            ids[:] = random.permutation(ids)


def drop_lists(opened):
    for number in range(0, opened.nlist, 2):
        opened.invlists.resize(number, 0)


def use_another_metric(opened):
    opened.metric_type = faiss.METRIC_L2
    quantizer = faiss.downcast_index(opened.quantizer)
    quantizer.metric_type = faiss.METRIC_L2
    centroids = faiss.rev_swig_ptr(quantizer.get_xb(), opened.nlist * opened.d).reshape(opened.nlist, opened.d)
    centroids *= np.random.default_rng(0).uniform(0.1, 10, (opened.nlist, 1)).astype(np.float32)


@pytest.mark.parametrize("sabotage", [shuffle_ids, drop_lists, use_another_metric])
def test_sabotaged_index_is_not_published(run, tmp_path, monkeypatch, capsys, sabotage):
    class Sabotaged(FaissTarget):
        def finish(self, kind, source, piece):
            super().finish(kind, source, piece)
            path = next(Path(self.destination).rglob("index.faiss.*"), None) or next(
                path for path in Path(self.destination).rglob("index.faiss") if "finished" in path.parts
            )
            opened = faiss.read_index(str(path))
            sabotage(opened)
            faiss.write_index(opened, str(path))

    monkeypatch.setattr(build_module, "open_target", lambda _, destination, settings: Sabotaged(destination, settings))
    folder = tmp_path / "index"
    assert run_command(["index", run, "--to", f"faiss:{folder}", "--kind", "IVF128,SQ8", "--recall", "0.95"]) == 1
    assert not (folder / "_varve/manifest.json").exists()
    assert not (folder / "index.faiss").exists()
    message = capsys.readouterr().err
    assert "IVF128,SQ8" in message
    assert "recall@10" in message


def test_same_index_that_is_not_sabotaged_is_published(run, tmp_path):
    assert build(settings_of(run, tmp_path / "index", recall=0.95)).record.kind == "IVF128,SQ8"


def test_next_candidate_is_built_if_the_first_does_not_reach_the_recall(run, tmp_path, monkeypatch):
    class TwoKinds(FaissTarget):
        def kinds(self, source):
            kinds = [FaissTarget(self.destination, replace(name)) for name in ("IVF128,PQ4x4", "IVF128,SQ8")]
            return [kind for target in kinds for kind in target.kinds(source)]

    def replace(name):
        return settings_of(run, tmp_path / "index", kind=name)

    monkeypatch.setattr(build_module, "open_target", lambda _, destination, settings: TwoKinds(destination, settings))
    record = build(settings_of(run, tmp_path / "index", kind="auto")).record
    assert record.kind == "IVF128,SQ8"
    assert {m.kind for m in record.measurements} == {"IVF128,PQ4x4", "IVF128,SQ8"}
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == ["_varve", "ids", "index.faiss"]
    assert faiss.read_index(str(tmp_path / "index/index.faiss")).ntotal == ROWS


def test_memory_too_small_ends_with_the_nearest_miss_and_writes_nothing(run, tmp_path, capsys):
    folder = tmp_path / "index"
    assert run_command(["index", run, "--to", f"faiss:{folder}", "--memory", "100kB"]) == 1
    message = capsys.readouterr().err
    assert "fits into 100.0 kB" in message
    assert "needs" in message
    assert not folder.exists()


def test_recall_that_no_index_reaches_ends_with_the_table(tmp_path, capsys):
    """Vectors without any structure, and a kind whose search visits few of them."""
    vectors = np.random.default_rng(0).normal(size=(5000, 128)).astype(np.float32)
    run = write_output(tmp_path / "features", {column("embedding", 128): vectors}, {"doc_id": ["d"] * 5000})
    arguments = ["index", run, "--to", f"faiss:{tmp_path / 'index'}", "--kind", "HNSW4,SQ8", "--recall", "0.9999"]
    assert run_command(arguments) == 1
    message = capsys.readouterr().err
    assert "the best, HNSW4,SQ8, has" in message
    assert "efSearch=16" in message
    assert not (tmp_path / "index/_varve/manifest.json").exists()


def test_second_build_reads_no_vector(run, tmp_path, capsys):
    copied = Path(shutil.copytree(run, tmp_path / "features"))
    command = ["index", str(copied), "--to", f"faiss:{tmp_path / 'index'}", "--kind", "IVF128,SQ8"]
    assert run_command(command) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")}
    for part in copied.glob("data/*"):
        if part.name.endswith("4000.parquet"):
            continue  # the schema of an output is that of its first part
        part.unlink()
    capsys.readouterr()
    assert run_command([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished_before"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*")} == before


def test_other_settings_are_refused_with_the_differences(run, tmp_path):
    build(settings_of(run, tmp_path / "index"))
    with pytest.raises(JobError, match=r"settings\.recall: 0\.95 → 0\.5"):
        build(settings_of(run, tmp_path / "index", recall=0.5))


def test_other_run_is_refused(run, tmp_path):
    build(settings_of(run, tmp_path / "index"))
    other = write_source(tmp_path / "other", fingerprint="e" * 64)
    with pytest.raises(JobError, match=r"source\.fingerprint"):
        build(settings_of(other, tmp_path / "index"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"feature": "embeding"}, "the feature 'embeding' is not there; it has: embedding"),
        ({"key": "url"}, "has no kept column 'url'; it has: doc_id"),
        ({"kind": "IVF0"}, "IVF0"),
    ],
)
def test_wrong_setting_is_refused_and_nothing_is_written(run, tmp_path, settings, expected):
    with pytest.raises(JobError, match=expected):
        build(settings_of(run, tmp_path / "index", **settings))
    assert not (tmp_path / "index").exists()


def test_unfinished_output_is_refused(tmp_path):
    (tmp_path / "features/_varve").mkdir(parents=True)
    (tmp_path / "features/_varve/job.json").write_text("{}")
    with pytest.raises(JobError, match="has not finished"):
        build(settings_of(str(tmp_path / "features"), tmp_path / "index"))


def test_index_of_a_program_has_the_record_of_the_manifest(run, tmp_path):
    record = index(run, f"faiss:{tmp_path / 'index'}", kind="IVF128,SQ8", keep=["doc_id"])
    stored = json.loads((tmp_path / "index/_varve/manifest.json").read_text())
    assert record.setting == stored["setting"]
    assert stored["measurements"][-1]["recall"]["10"] >= 0.95
    assert stored["request"]["source"]["manifest_sha256"] == open_source(run, ()).output.manifest.sha256
    assert set(stored["files"]) >= {"index.faiss"}


def test_verify_names_a_damaged_file(run, tmp_path, capsys):
    build(settings_of(run, tmp_path / "index"))
    assert run_command(["index", str(tmp_path / "index"), "--verify"]) == 0
    content = bytearray((tmp_path / "index/index.faiss").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "index/index.faiss").write_bytes(content)
    assert run_command(["index", str(tmp_path / "index"), "--verify"]) == 1
    assert "index.faiss" in capsys.readouterr().out


def test_index_file_is_read_and_its_mistakes_are_named(run, tmp_path, capsys):
    file = tmp_path / "index.yaml"
    file.write_text(f"path: {run}\nto: faiss:{tmp_path / 'index'}\nkind: IVF128,SQ8\nrecall: 0.9\n")
    assert run_command(["index", str(file)]) == 0
    file.write_text(f"path: {run}\nto: faiss:{tmp_path / 'index'}\nrecal: 0.9\n")
    assert run_command(["index", str(file)]) == 2
    assert "recal: unknown key" in capsys.readouterr().err
    assert run_command(["index", str(file), "--recall", "0.9"]) == 2
    assert run_command(["index", run]) == 2
    assert "--to is missing" in capsys.readouterr().err


def test_clean_lists_and_deletes_a_staged_file_of_an_index(run, tmp_path, capsys):
    folder = tmp_path / "index"
    build(settings_of(run, folder))
    (folder / "index.faiss#3").write_bytes(b"half of it")
    assert run_command(["clean", str(folder), "--older-than", "0"]) == 0
    assert "index.faiss#3" in capsys.readouterr().out
    assert run_command(["clean", str(folder), "--older-than", "nan", "--delete"]) == 2
    assert run_command(["clean", str(folder), "--older-than", "1e300", "--delete"]) == 0
    assert (folder / "index.faiss#3").exists()
    assert run_command(["clean", str(folder), "--older-than", "0", "--delete"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["_varve", "ids", "index.faiss"]
    assert run_command(["index", str(folder), "--verify"]) == 0


def test_output_of_a_run_is_not_taken_for_an_index(run, capsys):
    before = sorted(Path(run).rglob("*"))
    assert run_command(["index", run, "--verify"]) == 2
    assert "holds no published index" in capsys.readouterr().err
    assert run_command(["index", run, "--to", f"faiss:{run}", "--kind", "IVF128,SQ8"]) == 2
    assert "is the output of a run" in capsys.readouterr().err
    assert sorted(Path(run).rglob("*")) == before
