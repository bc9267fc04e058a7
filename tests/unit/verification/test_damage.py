"""Each kind of damage to a finished output is named by a check of `varve verify`.

Forgeries that rewrite a part or a record together with everything that derives from it are found by `--expect` alone.
"""

import json
import math
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.finished_runs import finish
from varve import Job
from varve.output.part_file import encode_part, parse_name
from varve.planning.saved_plan import CodePermission
from varve.verification.verify import verify

ROWS, SHARDS, PART = 60, 2, 25


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny):
    """(output, SHA-256 of its manifest, folder of the code) of a finished run."""
    folder = tmp_path_factory.mktemp("damage")
    (folder / "docs").mkdir()
    for shard in range(SHARDS):
        rows = range(shard * ROWS, (shard + 1) * ROWS)
        table = {
            "text": [None if row == 7 else f"text {row} {'long ' * (40 if row == 9 else row % 7)}" for row in rows],
            "doc_id": rows,
            "score": [math.nan if row % 3 else row / 7 for row in rows],
            "tags": [["a", str(row)] for row in rows],
            "when": pa.array(rows, pa.timestamp("s")),
        }
        pq.write_table(pa.table(table), folder / f"docs/{shard}.parquet")
    (folder / "code_of_job.py").write_text("def chars(rows): return [len(text) for text in rows['text'].to_pylist()]")
    keep = ["doc_id", "score", "tags", "when"]
    job = {
        "source": {"dataset": str(folder / "docs"), "text": "text", "keep": keep},
        "model": {"name": tiny("bert"), "max_tokens": 16},
        "features": {
            "embedding": {"pool": "mean", "normalize": True},
            "cls": {"pool": "cls", "layers": [0, 2]},
            "chars": {"python": "code_of_job:chars", "type": "int32"},
        },
        "output": {"path": str(folder / "out"), "rows_per_part": PART},
    }
    finished = finish(Job.parse(job).in_folder(str(folder)))
    return folder / "out", finished.sha256, str(folder)


@pytest.fixture
def output(made, tmp_path) -> Path:
    """A copy of the output, for tests that damage it."""
    return Path(shutil.copytree(made[0], tmp_path / "out"))


def failed(path: Path, made, **options) -> dict[str, tuple[str, ...]]:
    """The failures of each check that does not pass."""
    checks = verify(str(path), permission=CodePermission(made[2]), **options)
    return {check.name: check.failures for check in checks if not check.passed}


def test_undamaged_output_passes_every_check_and_skips_none(made):
    checks = verify(str(made[0]), permission=CodePermission(made[2]), expect=f"sha256:{made[1].upper()}", deep=True)
    assert [check for check in checks if check.failures or check.skipped] == []
    names = "published manifest job checksums rows numbers columns coverage totals canary source"
    assert [check.name for check in checks] == names.split()


def parts(output: Path) -> list[Path]:
    return sorted((output / "data").glob("part-*.parquet"))


def first(output: Path) -> Path:
    return parts(output)[1]


def flip(position: int):
    def damage(output: Path) -> None:
        content = bytearray(first(output).read_bytes())
        content[position] ^= 1
        first(output).write_bytes(content)

    return damage


def replace_by_folder(output: Path) -> None:
    part = first(output)
    part.unlink()
    part.mkdir()


def replace_by_broken_link(output: Path) -> None:
    part = first(output)
    part.unlink()
    part.symlink_to("nowhere")


def swap_files(output: Path) -> None:
    one, two = parts(output)[:2]
    contents = one.read_bytes(), two.read_bytes()
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])


def rewrite(change, **options):
    """Rewrite a part with pyarrow, as a user's own script would."""

    def damage(output: Path) -> None:
        table = change(pq.read_table(first(output)))
        pq.write_table(table, first(output), **options)

    return damage


def copy_to(name: str):
    def damage(output: Path) -> None:
        target = output / "data" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(first(output), target)

    return damage


def edit(name: str, change):
    """Edit a JSON file of the output."""

    def damage(output: Path) -> None:
        path = output / "_varve" / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def manifest(change):
    return edit("manifest.json", change)


def job(change):
    return edit("job.json", change)


def setting(*keys, value):
    """Set content[keys[0]][keys[1]]... to a value, or to the result of a function of the old value."""

    def change(content) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value(content[keys[-1]]) if callable(value) else value

    return change


def one_more(value: int) -> int:
    return value + 1


def set_column(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def rotated(name: str):
    """Give each row the value of the next row."""
    return lambda table: set_column(table, name, table[name].take([*range(1, len(table)), 0]))


def add_one(table: pa.Table) -> pa.Table:
    return set_column(table, "doc_id", pa.array([value + 1 for value in table["doc_id"].to_pylist()]))


# Damage → a check that names it.
DAMAGE = {
    "a part is deleted": (lambda o: first(o).unlink(), "coverage"),
    "a byte of the data is changed": (flip(1000), "checksums"),
    "a byte of the footer is changed": (flip(-200), "checksums"),
    "two parts are swapped": (swap_files, "checksums"),
    "a part is renamed": (
        lambda o: first(o).rename(o / "data/part-00000-000000000000-000000000099.parquet"),
        "coverage",
    ),
    "a part is truncated": (lambda o: os.truncate(first(o), 5000), "checksums"),
    "a part is empty": (lambda o: os.truncate(first(o), 0), "checksums"),
    "a byte is appended to a part": (lambda o: first(o).write_bytes(first(o).read_bytes() + b"x"), "coverage"),
    "a part is a folder": (replace_by_folder, "coverage"),
    "a part is a link to nothing": (replace_by_broken_link, "coverage"),
    "a text file in data": (lambda o: (o / "data/notes.txt").write_text("hi"), "coverage"),
    "a Parquet file in data": (copy_to("extra.parquet"), "coverage"),
    "a Parquet file in a folder of data": (copy_to("sub/extra.parquet"), "coverage"),
    "a hidden file in data": (copy_to(".part.parquet"), "coverage"),
    "a staged file of a broken upload": (copy_to("part-00000-000000000000-000000000025.parquet#1"), "coverage"),
    "a part of another shard": (copy_to("part-00009-000000000000-000000000025.parquet"), "coverage"),
    "an overlapping part": (copy_to("part-00000-000000000000-000000000050.parquet"), "coverage"),
    "a second spelling of a part's name": (copy_to("part-000000-000000000000-000000000025.parquet"), "coverage"),
    "a part is compressed again": (rewrite(lambda table: table, compression="snappy"), "checksums"),
    "a kept value is edited": (rewrite(add_one), "checksums"),
    "vectors are edited": (rewrite(rotated("embedding")), "checksums"),
    "a column is dropped": (rewrite(lambda table: table.drop_columns(["doc_id"])), "checksums"),
    "a column is added": (rewrite(lambda table: table.append_column("x", pa.array([1] * len(table)))), "checksums"),
    "manifest: num_rows": (manifest(setting("num_rows", value=one_more)), "totals"),
    "manifest: num_tokens": (manifest(setting("num_tokens", value=one_more)), "totals"),
    "manifest: num_errors": (manifest(setting("num_errors", value=one_more)), "totals"),
    "manifest: num_null_texts": (manifest(setting("num_null_texts", value=one_more)), "totals"),
    "manifest: num_truncated": (manifest(setting("num_truncated", value=77)), "totals"),
    "manifest: file_bytes": (manifest(setting("file_bytes", value=1)), "totals"),
    "manifest: error_reasons": (manifest(setting("error_reasons", value={"worker died": 1})), "totals"),
    "manifest: counts": (manifest(setting("counts", "overflows", value=4)), "totals"),
    "manifest: finished_at": (manifest(setting("finished_at", value="yesterday")), "totals"),
    "manifest: canary failed": (manifest(setting("canary", "passed", value=False)), "totals"),
    "manifest: no canary": (manifest(setting("canary", value={})), "totals"),
    "manifest: canary of no row": (manifest(setting("canary", "rows", value=0)), "totals"),
    "manifest: canary of another feature": (manifest(lambda m: m["canary"]["features"].pop("cls_00")), "totals"),
    "manifest: canary beyond its tolerance": (
        manifest(setting("canary", "features", "embedding", "relative", value=0.5)),
        "totals",
    ),
    "manifest: versions": (manifest(setting("versions", "torch", value="9")), "columns"),
    "manifest: a part is left out": (manifest(lambda m: m["parts"].pop(1)), "coverage"),
    "manifest: a part is listed twice": (manifest(lambda m: m["parts"].append(m["parts"][0])), "totals"),
    "manifest: another job": (manifest(setting("job", "model", "max_tokens", value=7)), "job"),
    "manifest: another resolved value": (manifest(setting("resolved", "max_tokens", value=7)), "job"),
    "manifest: fingerprint": (manifest(setting("fingerprint", value="0" * 64)), "job"),
    "manifest: a part's errors": (manifest(setting("parts", 0, "num_errors", value=1)), "rows"),
    "manifest: a part's truncated rows": (manifest(setting("parts", 0, "num_truncated", value=one_more)), "rows"),
    "manifest: a part's longest text": (manifest(setting("parts", 0, "longest", value=[0, 1])), "rows"),
    "manifest: a part's counts": (manifest(setting("parts", 0, "counts", value={"splits": 1})), "rows"),
    "manifest: a part's size": (manifest(setting("parts", 0, "file_bytes", value=one_more)), "coverage"),
    "manifest: a part's hash": (manifest(setting("parts", 0, "data_sha256", value="0" * 64)), "checksums"),
    "manifest: a part's footer hash": (manifest(setting("parts", 0, "footer_sha256", value="0" * 64)), "checksums"),
    "manifest: a part's rows": (manifest(setting("parts", 0, "stop", value=24)), "coverage"),
    "manifest is gone": (lambda o: (o / "_varve/manifest.json").unlink(), "published"),
    "job: pool": (job(setting("job", "features", "embedding", "pool", value="cls")), "job"),
    "job: normalize": (job(setting("job", "features", "embedding", "normalize", value=False)), "job"),
    "job: text": (job(setting("job", "source", "text", value="tags")), "job"),
    "job: keep": (job(setting("job", "source", "keep", value=["doc_id"])), "columns"),
    "job: a feature is left out": (job(lambda j: j["job"]["features"].pop("cls")), "columns"),
    "job: fingerprint": (job(setting("fingerprint", value="0" * 64)), "job"),
    "job: max_tokens": (job(setting("resolved", "max_tokens", value=8)), "job"),
    "job: weights": (job(setting("resolved", "weights_sha256", value="0" * 64)), "canary"),
    "job: files of the source": (job(setting("source", "files", value=["a", "b"])), "job"),
    "job: versions of the source": (job(setting("source", "versions", value=["1", "2"])), "canary"),
    "job: rows of the source": (job(setting("source", "shards", "rows", value=[ROWS, ROWS - 1])), "coverage"),
    "job: hash of the code": (job(setting("code", "identity", value={"features.chars.code": "0" * 64})), "job"),
    "job: no code": (job(lambda j: j.pop("code")), "job"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_by_a_check(name, output, made):
    damage, check = DAMAGE[name]
    damage(output)
    failures = failed(output, made)
    assert failures.get(check), failures


def forge(change, *, every: bool = False):
    """Change the rows of a part, or of every part, write it as a run does, and repair its record and the sums."""

    def damage(output: Path) -> None:
        path, content = output / "_varve/manifest.json", json.loads((output / "_varve/manifest.json").read_text())
        for number, file in enumerate(parts(output)[: None if every else 1]):
            rows, record = parse_name(f"data/{file.name}"), content["parts"][number]
            assert rows is not None
            part, written = encode_part(rows, change(pq.read_table(file)), content["fingerprint"], record["counts"])
            file.write_bytes(written)
            forged = {key: value for key, value in part.to_json().items() if key != "fingerprint"}
            content["parts"][number] = forged
            for name in ("num_tokens", "num_errors", "num_null_texts", "num_truncated", "file_bytes"):
                content[name] += forged[name] - record[name]
        path.write_text(json.dumps(content))

    return damage


def swap_two_vectors(table: pa.Table) -> pa.Table:
    order = list(range(len(table)))
    order[3], order[4] = 4, 3
    return set_column(table, "embedding", table["embedding"].take(order))


# Forgery of a part and its record → a check that names it, or None.
FORGERIES = {
    "all kept values": (add_one, "canary"),
    "kept values of other rows": (rotated("tags"), "canary"),
    "all vectors": (rotated("embedding"), "canary"),
    "all computed values": (rotated("chars"), "canary"),
    "vectors of another length": (lambda t: set_column(t, "embedding", rotated("cls_02")(t)["cls_02"]), "numbers"),
    "a kept column is dropped": (lambda t: t.drop_columns(["doc_id"]), "rows"),
    "a column is added": (lambda t: t.append_column("x", pa.array([1] * len(t))), "rows"),
    "a kept column has another type": (
        lambda t: t.set_column(t.schema.get_field_index("doc_id"), "doc_id", t["doc_id"].cast(pa.int32())),
        "rows",
    ),
    "rows in another order": (lambda t: t.take(list(reversed(range(len(t))))), "rows"),
    "good rows have an error": (
        lambda t: set_column(t, "error", pa.array(["worker died"] * len(t))),
        None,
    ),
    "texts are called null": (
        lambda t: set_column(t, "error", pa.array(["null text in text"] * (len(t) - 5) + [None] * 5)),
        "canary",
    ),
    "two vectors are swapped": (swap_two_vectors, None),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_is_named_by_a_check_or_by_the_expected_hash(name, output, made):
    change, check = FORGERIES[name]
    forge(change, every=check == "canary")(output)  # the canary reads a sample, which may miss a single part
    failures = failed(output, made, expect=made[1])
    assert failures.get("manifest")
    assert check is None or failures.get(check), failures


# Records that derive from nothing → found by the expected hash alone.
UNDERIVED = {
    "times": setting("started_at", value="2020-01-01T00:00:00+00:00"),
    "phases": setting("seconds", value={"ray": 1.0}),
    "path": setting("path", value="s3://elsewhere"),
    "retries": setting("storage", "retries", value=5),
    "replicas": setting("job", "compute", "replicas", value=7),
}


@pytest.mark.parametrize("name", UNDERIVED)
def test_forged_record_of_how_a_run_went_is_named_by_the_expected_hash(name, output, made):
    manifest(UNDERIVED[name])(output)
    assert set(failed(output, made, expect=made[1])) == {"manifest"}
    assert failed(output, made) == {}
