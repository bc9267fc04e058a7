"""A finished folder output published in a feature table: the same vectors, only what changed, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from tests.finished_runs import finish, finish_table
from tests.lake.backends import SCHEMA, Backend, make_backend, rows
from varve import Job
from varve.backfill import publish as publishing
from varve.cli.main import run_command
from varve.config.table_address import parse_table_address
from varve.output.part_file import write_part
from varve.output.part_table import PartTable
from varve.output.run_output import Output
from varve.planning import resolve

ROWS = 50
VECTOR = pa.list_(pa.float32())


@pytest.fixture
def sibling(backend):
    """Backends whose features go to a table of their own."""
    if backend.address.startswith("lance"):
        pytest.skip("features of Lance are columns of the source")
    return backend


@pytest.fixture
def local(tmp_path, monkeypatch) -> Backend:
    """One backend, for what does not depend on the format."""

    def no_server():
        raise AssertionError

    return make_backend("delta-disk", tmp_path / "lake", no_server, monkeypatch)


@pytest.fixture
def encode(tiny, tmp_path):
    """Runs a job from a table to a folder; returns the folder."""

    def make(backend: Backend, name: str, *, code: Path | None = None, **changes) -> Path:
        source = {"table": backend.address, "text": "body", "key": "doc_id", "keep": ["lang"]}
        content = {
            "source": source | changes.pop("source", {}),
            "model": {"name": tiny("bert")} | changes.pop("model", {}),
            "features": {"embedding": {"pool": "mean"}} | changes.pop("features", {}),
            "output": {"path": str(tmp_path / name), "rows_per_part": 16} | changes,
        }
        finish(Job.parse(content).in_folder(str(code or tmp_path)))
        return tmp_path / name

    return make


@pytest.fixture
def publish(capsys):
    """Runs `varve publish`; returns (exit code, parsed JSON)."""

    def run(folder: Path, address: str, *flags: str) -> tuple[int, dict]:
        code = run_command(["publish", str(folder), "--table", address, "--key", "doc_id", "--json", *flags])
        return code, json.loads(capsys.readouterr().out)

    return run


def sorted_rows(table: pa.Table) -> pa.Table:
    """The columns of rows, in the order of the keys, with types that do not depend on the reader."""
    table = table.sort_by("doc_id")
    return pa.table(
        {
            "doc_id": table["doc_id"],
            "lang": table["lang"].cast(pa.string()),
            "text_hash": table["text_hash"].cast(pa.binary()),
            "embedding": table["embedding"].combine_chunks().cast(VECTOR),
            "num_tokens": table["num_tokens"],
            "error": table["error"].cast(pa.string()),
        }
    )


def features_of(backend: Backend) -> pa.Table:
    return sorted_rows(backend.read(backend.features_address))


def parts_in(folder: Path) -> list[pa.Table]:
    return [pq.ParquetFile(path).read() for path in sorted((folder / "data").glob("*.parquet"))]


def rows_in(folder: Path) -> pa.Table:
    return sorted_rows(pa.concat_tables(parts_in(folder)))


def stop(*_arguments, **_options):
    raise KeyboardInterrupt


def table_job(folder: Path, backend: Backend) -> Job:
    """The job of an ordinary run that has the same features."""
    content = Output.open(str(folder)).manifest.job
    return Job.parse(content | {"output": {"table": backend.features_address, "rows_per_part": 16}})


def test_published_rows_equal_those_of_the_folder_bit_by_bit_and_once(sibling, encode, publish):
    sibling.create(rows(range(ROWS)), partition="lang")
    sibling.append(pa.table([[1000], ["de"], [None]], schema=SCHEMA))
    folder = encode(sibling, "first")
    code, found = publish(folder, sibling.features_address)
    assert code == 0
    assert found["table"]["rows"] == {"new": ROWS + 1, "changed": 0, "unchanged": 0, "removed": 0}
    assert features_of(sibling).equals(rows_in(folder))
    assert features_of(sibling)["embedding"].null_count == 1
    code, again = publish(folder, sibling.features_address)
    assert code == 0
    assert again["finished_before"]
    assert again["table"]["version"] == found["table"]["version"]


def test_later_output_publishes_only_what_changed(sibling, encode, publish):
    sibling.create(rows(range(ROWS)), partition="lang")
    first = encode(sibling, "first")
    publish(first, sibling.features_address)
    sibling.update(rows([3, 40], "another text of {}"))
    sibling.append(rows([1000, 1001, 1002]))
    sibling.delete([8])
    second = encode(sibling, "second")
    code, found = publish(second, sibling.features_address)
    assert code == 0
    assert found["table"]["rows"] == {"new": 3, "changed": 2, "unchanged": ROWS - 3, "removed": 1}
    assert found["num_rows"] == 5
    kept = rows_in(first).filter(~pc.field("doc_id").isin([3, 8, 40]))
    changed = rows_in(second).filter(pc.field("doc_id").isin([3, 40, 1000, 1001, 1002]))
    expected = pa.concat_tables([kept, changed]).sort_by("doc_id")
    assert features_of(sibling).equals(expected)


def test_changed_rows_among_unchanged_ones_of_a_file_get_their_own_vectors(local, encode, publish):
    local.create(rows(range(ROWS)))
    first = encode(local, "first")
    publish(first, local.features_address)
    changed = [3, 17, 18, 31, 32, 49]
    texts = [f"another text of {key}" if key in changed else f"text {key}" for key in range(ROWS)]
    source = rows(range(ROWS)).set_column(2, "body", pa.array(texts))
    write_deltalake(parse_table_address(local.address).name, source, mode="overwrite")
    second = encode(local, "second", rows_per_part=4)
    found = publish(second, local.features_address)[1]
    assert found["table"]["rows"] == {"new": 0, "changed": 6, "unchanged": ROWS - 6, "removed": 0}
    is_changed = pc.field("doc_id").isin(changed)
    expected = pa.concat_tables([rows_in(first).filter(~is_changed), rows_in(second).filter(is_changed)])
    assert features_of(local).equals(expected.sort_by("doc_id"))


def test_published_table_is_verified_and_continued_by_an_ordinary_run(sibling, encode, publish, capsys):
    sibling.create(rows(range(ROWS)), partition="lang")
    folder = encode(sibling, "first")
    publish(folder, sibling.features_address)
    assert run_command(["status", sibling.features_address]) == 0
    assert run_command(["verify", sibling.features_address]) == 0, capsys.readouterr().out
    job = table_job(folder, sibling)
    assert finish_table(job)[1]
    sibling.update(rows([3], "another text of {}"))
    assert run_command(["status", sibling.features_address]) == 1
    manifest, finished_before = finish_table(job)
    assert not finished_before
    assert manifest.num_rows == 1


def test_output_without_key_and_partition_gets_hashes_and_partition_of_the_source(local, encode, publish):
    local.create(rows(range(ROWS)), partition="lang")
    folder = encode(local, "plain", source={"key": None, "keep": ["doc_id"]})
    assert publish(folder, local.features_address)[0] == 0
    assert features_of(local).equals(rows_in(encode(local, "with-key")))


def test_table_without_partition_gets_the_same_rows(local, encode, publish):
    local.create(rows(range(ROWS)), partition="lang")
    folder = encode(local, "first")
    assert publish(folder, local.features_address, "--partition", "none")[0] == 0
    assert features_of(local).equals(rows_in(folder))


FUNCTIONS = """
def chars(rows):
    return [len(text) for text in rows["body"].to_pylist()]
"""


def test_functions_run_only_with_code(local, encode, publish, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code/publish_features.py").write_text(FUNCTIONS)
    local.create(rows(range(ROWS)))
    features = {"chars": {"python": "publish_features:chars", "type": "int32"}, "tokens": {"pool": "tokens"}}
    folder = encode(local, "first", features=features, code=tmp_path / "code")
    code, found = publish(folder, local.features_address)
    assert code == 2
    assert "--code" in found["error"]
    assert publish(folder, local.features_address, "--code", str(tmp_path / "code"))[0] == 0
    stored, expected = (
        pa.table({name: table.sort_by("doc_id")[name] for name in ("doc_id", "chars", "tokens")})
        for table in (local.read(local.features_address), pa.concat_tables(parts_in(folder)))
    )
    assert stored.to_pydict() == expected.to_pydict()


def test_interrupted_publication_is_continued_by_the_same_command(local, encode, publish, monkeypatch):
    local.create(rows(range(ROWS)))
    folder = encode(local, "first")
    with monkeypatch.context() as patches:
        patches.setattr(publishing, "check_staged", stop)
        assert publish(folder, local.features_address)[0] == 1
    code, found = publish(folder, local.features_address)
    assert code == 0
    assert found["table"]["rows"]["new"] == ROWS
    assert features_of(local).equals(rows_in(folder))


def test_summary_names_the_output_and_that_nothing_was_encoded(local, encode, capsys):
    local.create(rows(range(ROWS)))
    folder = encode(local, "first")
    capsys.readouterr()
    argv = ["publish", str(folder), "--table", local.features_address, "--key", "doc_id"]
    assert run_command(argv) == 0
    text = capsys.readouterr().out
    assert f"Complete: {local.features_address}" in text
    assert f"{ROWS:,} new, 0 changed, 0 unchanged, 0 removed" in text
    assert f"none: the features are those of {folder}" in text
    assert run_command(argv) == 0
    assert capsys.readouterr().out.startswith("Nothing to do")


@pytest.mark.parametrize("part", [0, -1])
def test_output_with_a_damaged_part_is_not_published(local, encode, publish, part):
    local.create(rows(range(ROWS)))
    folder = encode(local, "first")
    record = Output.open(str(folder)).manifest.parts
    damaged = [each for each in record if each.range.num_rows][part]
    content = bytearray((folder / damaged.name).read_bytes())
    content[damaged.data_bytes // 2] ^= 1
    (folder / damaged.name).write_bytes(content)
    code, found = publish(folder, local.features_address)
    assert code == 1
    assert damaged.name in found["error"]
    assert local.read(local.features_address).num_rows == 0


def change_part(folder: Path, column: str) -> None:
    """Reverse a column of the first part, and write the records that fit."""
    output = Output.open(str(folder))
    part, *others = output.manifest.parts
    table = output.read(part, output.schema.names)
    values = table[column].take(pa.array(range(len(table))[::-1]))
    table = table.set_column(table.schema.get_field_index(column), output.schema.field(column), values)
    output.storage.delete([part.name])
    table = table.replace_schema_metadata(output.schema.metadata)
    changed = write_part(output.storage, part.range, table, part.fingerprint)
    manifest = replace(output.manifest, parts=PartTable.of([changed, *others]))
    (folder / "_varve/manifest.json").write_bytes(manifest.encode())


@pytest.mark.parametrize("column", ["doc_id", "text_hash"])
def test_output_whose_rows_are_not_those_of_its_source_is_not_published(local, encode, publish, column):
    local.create(rows(range(ROWS)))
    folder = encode(local, "first")
    change_part(folder, column)
    code, found = publish(folder, local.features_address)
    assert code == 1
    assert f"another {column} in the output than in the source" in found["error"]


def test_vectors_of_other_rows_are_not_published(local, encode, publish):
    local.create(rows(range(ROWS)))
    folder = encode(local, "first")
    change_part(folder, "embedding")
    code, found = publish(folder, local.features_address)
    assert code == 1
    assert "differs from plain transformers" in found["error"]


@pytest.mark.parametrize(
    ("keys", "problem"), [([1, 2, 1], "1"), ([1, None, 2], "null"), ([4, 5, 4, 5], "4")], ids=["twice", "null", "pairs"]
)
def test_key_that_does_not_identify_a_row_is_refused_with_examples(local, encode, publish, keys, problem):
    local.create(pa.table([keys, ["de"] * len(keys), ["text"] * len(keys)], schema=SCHEMA))
    code, found = publish(encode(local, "first"), local.features_address)
    assert code == 2
    assert problem in found["error"].partition("source.key")[2]


def test_key_that_was_not_kept_is_refused(local, encode, capsys):
    local.create(rows(range(9)))
    folder = encode(local, "first", source={"key": None, "keep": ["lang"]})
    assert run_command(["publish", str(folder), "--table", local.features_address, "--key", "doc_id"]) == 2
    error = capsys.readouterr().err
    assert "--key: 'doc_id' is not a kept column" in error
    assert "kept columns: lang" in error


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_types_that_readers_lose_are_refused(local, encode, publish, dtype):
    local.create(rows(range(9)))
    code, found = publish(encode(local, "first", dtype=dtype), local.features_address)
    assert code == 2
    assert dtype in found["error"]


def test_attentions_are_refused(local, encode, publish):
    local.create(rows(range(9)))
    code, found = publish(encode(local, "first", features={"map": {"pool": "attentions"}}), local.features_address)
    assert code == 2
    assert "attentions" in found["error"]


def test_features_of_another_model_are_refused(local, encode, publish):
    local.create(rows(range(9)))
    publish(encode(local, "first"), local.features_address)
    code, found = publish(encode(local, "other", model={"max_tokens": 16}), local.features_address)
    assert code == 2
    assert "feature set" in found["error"]


@pytest.fixture
def encode_on_gpu(encode, monkeypatch):
    """`encode`, with what `auto` is on a GPU."""

    def make(backend: Backend, name: str) -> Path:
        with monkeypatch.context() as patches:
            patches.setattr(resolve, "resolve_dtype", lambda _dtype, _device: "float16")
            return encode(backend, name)

    return make


def test_vectors_of_another_compute_type_are_compared_with_its_tolerance(local, encode_on_gpu, publish):
    local.create(rows(range(9)))
    folder = encode_on_gpu(local, "first")
    code, found = publish(folder, local.features_address)
    assert code == 0, found
    assert features_of(local).equals(rows_in(folder))
    assert run_command(["verify", local.features_address]) == 0


def test_unfinished_run_with_other_settings_is_refused(local, encode_on_gpu, publish, monkeypatch):
    local.create(rows(range(9)))
    folder = encode_on_gpu(local, "first")
    job = table_job(folder, local)
    with monkeypatch.context() as patches:
        patches.setattr(publishing, "check_staged", stop)
        with pytest.raises(KeyboardInterrupt):
            finish_table(job)
    code, found = publish(folder, local.features_address)
    assert code == 2
    assert "unfinished run of varve embed" in found["error"]
    assert finish_table(job)[0].num_rows == 9


def test_unfinished_output_is_refused(local, encode, publish):
    local.create(rows(range(9)))
    folder = encode(local, "first")
    (folder / "_varve/manifest.json").unlink()
    code, found = publish(folder, local.features_address)
    assert code == 2
    assert "has not finished" in found["error"]


def test_lance_table_is_refused(local, encode, publish, tmp_path):
    local.create(rows(range(9)))
    code, found = publish(encode(local, "first"), f"lance+{tmp_path}/features.lance")
    assert code == 2
    assert "Lance" in found["error"]


def test_folder_of_a_run_to_a_table_is_refused(local, encode, publish):
    local.create(rows(range(9)))
    job = table_job(encode(local, "first"), local)
    manifest, _ = finish_table(job)
    code, found = publish(Path(manifest.path), local.features_address) if "://" not in manifest.path else (2, {})
    assert code == 2
    assert "run to" in found.get("error", "run to")


def test_output_of_files_is_refused_with_what_to_do(encode_files, publish, tmp_path):
    code, found = publish(encode_files, f"delta+{tmp_path}/features")
    assert code == 2
    assert "is not a table" in found["error"]
    assert "source.table" in found["error"]
    assert not (tmp_path / "features").exists()


@pytest.fixture
def encode_files(tiny, tmp_path):
    """The output of a job over a Parquet file."""
    (tmp_path / "docs").mkdir()
    pq.write_table(rows(range(9)), tmp_path / "docs/0.parquet")
    job = {
        "source": {"dataset": str(tmp_path / "docs"), "text": "body", "keep": ["doc_id"]},
        "model": {"name": tiny("bert")},
        "output": {"path": str(tmp_path / "out")},
    }
    finish(Job.parse(job))
    return tmp_path / "out"
