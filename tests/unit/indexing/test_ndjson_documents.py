"""Files of documents: every line is JSON, every value reads back, every document has its own `_id`."""

import json
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pytest

from tests.index_sources import ERRORS, ROWS, build, clustered, open_source, write_source
from tests.outputs import column, write_output
from varve.config.index import Index
from varve.encoder.ragged import Ragged
from varve.errors import JobError, RunError
from varve.indexing.ndjson.json_columns import vector_texts
from varve.indexing.ndjson.ndjson_target import NdjsonTarget
from varve.indexing.rows import SparseVectors
from varve.output.vocabulary import encode_vocabulary, write_vocabulary
from varve.storage.object_store import Storage

WORDS = ["[PAD]", "cat", "##s", ".", "a.b", "“é”", '"quoted\\', "dog"]


def target_of(tmp_path, **settings) -> NdjsonTarget:
    index = Index(path=str(tmp_path / "run"), to=f"ndjson:{tmp_path}/index", **settings)
    return NdjsonTarget(index.destination, index)


def read_documents(folder) -> list[tuple[str, dict]]:
    """(_id, document) of all files, in the order of their names."""
    pairs = []
    for path in sorted(folder.glob("documents/*.ndjson.zst")):
        with pa.input_stream(str(path), compression="zstd") as stream:
            lines = stream.read().decode().split("\n")
        assert lines.pop() == ""
        pairs += [(json.loads(a)["index"]["_id"], json.loads(b)) for a, b in zip(lines[::2], lines[1::2], strict=True)]
    return pairs


def decoded(source) -> np.ndarray:
    return np.concatenate([source.read(part).dense for part in range(source.num_parts)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_documents_hold_every_row_of_the_output(tmp_path, dtype):
    source = open_source(write_source(tmp_path / "run", dtype=dtype))
    target = target_of(tmp_path, key="doc_id", keep=["title"])
    build(target, source, "ndjson")
    documents = read_documents(tmp_path / "index")
    vectors = np.array([document.pop("embedding") for _, document in documents]).astype(np.float32)
    assert vectors.tobytes() == decoded(source).tobytes()
    ids = pa.concat_tables([source.read(part).ids for part in range(source.num_parts)])
    assert [document for _, document in documents] == ids.to_pylist()
    assert [name for name, _ in documents] == ids["doc_id"].to_pylist()
    assert len(documents) == ROWS - len(ERRORS)


def test_document_without_a_key_is_identified_by_shard_and_row(tmp_path):
    source = open_source(write_source(tmp_path / "run"), ())
    build(target_of(tmp_path), source, "ndjson")
    names = [name for name, _ in read_documents(tmp_path / "index")]
    assert names[:4] == ["0/0", "0/1", "0/2", "0/4"]  # row 3 has an error
    assert names[-1] == "2/599"
    assert len({*names}) == len(names)


@pytest.mark.parametrize(("key", "expected"), [(None, "0/7/0"), ("title", "seven/0")])
def test_windows_have_their_number_in_the_id(tmp_path, key, expected):
    definition = column("embedding", 32, pool="mean", layer=12, form="windows")
    titles = [str(row) for row in range(300)]
    titles[7] = "seven"
    path = write_output(tmp_path / "run", {definition: clustered(300)}, {"title": titles})
    source = open_source(path, ("title",))
    build(target_of(tmp_path, **({"key": key} if key else {"keep": ["title"]})), source, "ndjson")
    name, document = read_documents(tmp_path / "index")[7]
    assert (name, document["item"]) == (expected, 0)


def test_binary_vectors_are_signed_bytes(tmp_path):
    source = open_source(write_source(tmp_path / "run", dtype="binary"), ())
    build(target_of(tmp_path), source, "ndjson")
    stored = np.array([document["embedding"] for _, document in read_documents(tmp_path / "index")], np.int8)
    assert np.array_equal(np.unpackbits(stored.view(np.uint8), axis=1) * 2.0 - 1, decoded(source))
    mapping = json.loads((tmp_path / "index/mapping.json").read_text())["mappings"]["properties"]["embedding"]
    assert (mapping["data_type"], mapping["dimension"], mapping["method"]["space_type"]) == ("binary", 32, "hamming")
    other = json.loads((tmp_path / "index/mapping.elasticsearch.json").read_text())["mappings"]["properties"]
    assert (other["embedding"]["element_type"], other["embedding"]["dims"]) == ("bit", 32)


def write_sparse(tmp_path, lists: list[dict[int, float]], tokens=WORDS):
    """An output whose row r has the weights of `lists[r]`; opened as a source."""
    offsets = np.cumsum([0, *map(len, lists)])
    ids = Ragged(np.array([index for row in lists for index in row], np.int32), offsets)
    weights = Ragged(np.array([weight for row in lists for weight in row.values()], np.float32), offsets)
    definition = column("splade", len(tokens), form="sparse", pool="declared")
    titles = {"title": [str(row) for row in range(len(lists))]}
    path = write_output(tmp_path / "run", {definition: SparseVectors(ids, weights)}, titles, rows_per_part=2)
    write_vocabulary(Storage(path), encode_vocabulary(tokens))
    return open_source(path, ())


def test_sparse_vectors_are_weights_of_tokens(tmp_path):
    lists = [{1: 0.1, 4: 2.5}, {}, {0: 1e-20, 3: 3.0, 5: 0.3333333, 6: 7.0}, {2: 0.0, 7: 1.0}]
    source = write_sparse(tmp_path, lists)
    build(target_of(tmp_path), source, "ndjson")
    found = [document["splade"] for _, document in read_documents(tmp_path / "index")]
    names = {index: token.replace(".", "\N{ONE DOT LEADER}") for index, token in enumerate(WORDS)}
    expected = [{names[index]: np.float32(weight) for index, weight in row.items() if weight} for row in lists]
    assert [{name: np.float32(weight) for name, weight in row.items()} for row in found] == expected
    for name, kind in (("mapping.json", "rank_features"), ("mapping.elasticsearch.json", "sparse_vector")):
        assert json.loads((tmp_path / "index" / name).read_text())["mappings"]["properties"]["splade"] == {"type": kind}


def test_tokens_without_a_name_of_their_own_are_numbered(tmp_path):
    tokens = ["", "", "a.b", "a\N{ONE DOT LEADER}b", "#0"]
    source = write_sparse(tmp_path, [{0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}], tokens)
    build(target_of(tmp_path), source, "ndjson")
    ((_, document),) = read_documents(tmp_path / "index")
    assert list(document["splade"].values()) == [1.0, 2.0, 3.0, 4.0, 5.0]  # five different names


def test_negative_weight_is_reported(tmp_path):
    source = write_sparse(tmp_path, [{1: 0.1}, {2: -0.5}])
    with pytest.raises(RunError, match="splade has weights that are negative or not finite in shard 0, row 1"):
        build(target_of(tmp_path), source, "ndjson")


def test_vector_that_is_not_finite_is_reported(tmp_path):
    vectors = clustered(300)
    vectors[223, 4] = np.inf
    definition = column("embedding", 32, pool="declared", layer=12)
    path = write_output(tmp_path / "run", {definition: vectors}, {"title": ["a"] * 300}, similarity="dot")
    with pytest.raises(RunError, match="embedding has values that are not finite in shard 0, row 223"):
        build(target_of(tmp_path), open_source(path, ()), "ndjson")


def test_late_interaction_is_not_accepted(tmp_path):
    assert target_of(tmp_path).accepts == {"dense", "sparse"}


KEPT = {
    "text": ['line\nbreak "quoted" back\\slash\ttab', None, "\x00\x1f\u2028 é 😀", ""],
    "number": [1, None, -(2**63), 2**63 - 1],
    "share": [0.1, None, float("nan"), float("-inf")],
    "flag": [True, None, False, True],
    "time": [datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC), None, None, datetime(1900, 1, 1, tzinfo=UTC)],
    "day": [date(2020, 1, 2), None, date(1, 1, 1), None],
    "tags": [["a", 'b"'], None, [], [None]],
    "nested": [{"x": 1.5, "y": [b"\xff"]}, None, {"x": float("nan"), "y": None}, {"x": None, "y": []}],
}


def test_kept_columns_of_all_types_read_back(tmp_path):
    definition = column("embedding", 32, pool="mean", layer=12)
    path = write_output(tmp_path / "run", {definition: clustered(4)}, KEPT, rows_per_part=3)
    source = open_source(path, tuple(KEPT))
    build(target_of(tmp_path, keep=list(KEPT)), source, "ndjson")
    found = [document for _, document in read_documents(tmp_path / "index")]
    for name in ("text", "number", "flag", "tags"):
        assert [document[name] for document in found] == KEPT[name], name
    assert [document["share"] for document in found] == [0.1, None, None, None]
    assert [document["day"] for document in found] == ["2020-01-02", None, "0001-01-01", None]
    times = [document["time"] and datetime.fromisoformat(document["time"]) for document in found]
    assert times == KEPT["time"]
    assert [document["nested"] for document in found] == [
        {"x": 1.5, "y": ["/w=="]}, None, {"x": None, "y": None}, {"x": None, "y": []}
    ]  # fmt: skip
    kinds = json.loads((tmp_path / "index/mapping.json").read_text())["mappings"]["properties"]
    assert {name: kinds[name]["type"] for name in KEPT if name in kinds} == {
        "text": "text", "number": "long", "share": "double", "flag": "boolean", "time": "date", "day": "date"
    }  # fmt: skip


def test_all_float32_values_read_back():
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    edges = np.array([0.0, -0.0, 1e-45, 1.1754944e-38, 3.4028235e38, 0.1, 16777217, 1 / 3], np.float32)
    finite = np.concatenate([edges, values[np.isfinite(values)]])
    text = vector_texts(finite[None, :])[0].as_py()
    assert np.array(json.loads(text), np.float64).astype(np.float32).tobytes() == finite.tobytes()


def test_many_and_long_rows_are_written_in_blocks(tmp_path):
    vectors = clustered(9000, 4)
    definition = column("embedding", 4, pool="mean", layer=12)
    path = write_output(tmp_path / "run", {definition: vectors}, {"title": ["a"] * 9000}, rows_per_part=9000)
    source = open_source(path, ())
    build(target_of(tmp_path), source, "ndjson")
    documents = read_documents(tmp_path / "index")
    assert [document["position"] for _, document in documents] == list(range(9000))
    stored = np.array([document["embedding"] for _, document in documents], np.float64).astype(np.float32)
    assert np.array_equal(stored, decoded(source))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a", "b", "a", "c", "b", "a"], r"2 value\(s\) that are not unique: 'a' in shard 0, row 0 and shard 0, row 2"),
        (["a", None, "b", "c", "d", "e"], r"is null in 1 row\(s\) of .*shard 0, row 1"),
        (["a", "", "b", "c", "d", "e"], r"has 0 bytes in 1 row\(s\) of .*shard 0, row 1; expected 1 to 480"),
        (["a", "é" * 241, "b", "c", "d", "e"], r"has 482 bytes"),
        ([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], "is of type double, expected strings or integers"),
        ([1, 2, 3, 3, 5, 6], r"1 value\(s\) that are not unique: '3' in shard 0, row 2 and shard 0, row 3"),
    ],
)  # fmt: skip
def test_key_that_identifies_no_document_is_refused(tmp_path, keys, message):
    definition = column("embedding", 32, pool="mean", layer=12)
    path = write_output(tmp_path / "run", {definition: clustered(6)}, {"doc": keys}, rows_per_part=2)
    with pytest.raises(JobError, match=message):
        target_of(tmp_path, key="doc").check(open_source(path, ("doc",)))
    assert not (tmp_path / "index").exists()


def test_key_of_a_row_with_an_error_is_not_compared(tmp_path):
    definition = column("embedding", 32, pool="mean", layer=12)
    keys = {"doc": ["a", "a", None, "b", "é" * 240, "7"]}
    path = write_output(tmp_path / "run", {definition: clustered(6)}, keys, rows_per_part=2, errors=(1, 2))
    target_of(tmp_path, key="doc").check(open_source(path, ("doc",)))


def test_keys_of_many_rows_are_compared_exactly(tmp_path):
    definition = column("embedding", 4, pool="mean", layer=12)
    keys = [f"{'x' * (row % 7)}{row}" for row in range(20_000)]
    path = write_output(tmp_path / "run", {definition: clustered(20_000, 4)}, {"doc": keys}, rows_per_part=5000)
    target_of(tmp_path, key="doc").check(open_source(path, ("doc",)))


@pytest.mark.parametrize(
    ("changes", "space", "similarity"),
    [
        ({}, "innerproduct", "cosine"),
        ({"similarity": "dot"}, "innerproduct", "max_inner_product"),
        ({"similarity": "euclidean"}, "l2", "l2_norm"),
        ({"length": 2}, "cosinesimil", "cosine"),
    ],
)
def test_mappings_have_the_metric_of_the_checkpoint(tmp_path, changes, space, similarity):
    definition = column("embedding", 32, pool="declared", layer=12)
    vectors = clustered(300) * changes.pop("length", 1)
    path = write_output(tmp_path / "run", {definition: vectors}, {"title": ["a"] * 300}, **changes)
    build(target_of(tmp_path), open_source(path, ()), "ndjson")
    one, other = (
        json.loads((tmp_path / "index" / name).read_text())["mappings"]["properties"]["embedding"]
        for name in ("mapping.json", "mapping.elasticsearch.json")
    )
    assert (one["type"], one["dimension"], one["method"]["space_type"]) == ("knn_vector", 32, space)
    assert (other["type"], other["dims"], other["similarity"]) == ("dense_vector", 32, similarity)


def test_mapping_of_elasticsearch_is_left_out_where_vectors_are_too_wide(tmp_path):
    definition = column("embedding", 4097, pool="mean", layer=12)
    path = write_output(tmp_path / "run", {definition: clustered(10, 4097)}, {"title": ["a"] * 10})
    _, record = build(target_of(tmp_path), open_source(path, ()), "ndjson")
    assert {name for name in record.files if "mapping" in name} == {"mapping.json"}


@pytest.mark.parametrize("name", ["_id", ".hidden", "a..b"])
def test_column_that_is_not_a_field_name_is_refused(tmp_path, name):
    definition = column("embedding", 32, pool="mean", layer=12)
    path = write_output(tmp_path / "run", {definition: clustered(4)}, {name: ["a"] * 4})
    with pytest.raises(JobError, match="cannot be the name of a field"):
        target_of(tmp_path, keep=[name]).check(open_source(path, (name,)))


def test_bits_that_fill_no_byte_are_refused(tmp_path):
    with pytest.raises(JobError, match="has 20 bits"):
        target_of(tmp_path).check(open_source(write_source(tmp_path / "run", width=20, dtype="binary")))


def test_second_build_finds_the_published_documents(tmp_path):
    source, target = open_source(write_source(tmp_path / "run"), ()), target_of(tmp_path)
    kind, record = build(target, source, "ndjson")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*.*")}
    assert target.published() == record
    assert target.added(kind, source) == {*range(source.num_parts)}
    build(target, source, "ndjson")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "index").rglob("*.*")} == before
    assert target.verify(record) == []
    (tmp_path / "index/documents/part-000000.ndjson.zst").unlink()
    assert len(target.verify(record)) == 1
    assert target.added(kind, source) == {*range(1, source.num_parts)}


def test_documents_of_two_builds_have_the_same_bytes(tmp_path):
    source = open_source(write_source(tmp_path / "run"))
    for copy in ("one", "two"):
        build(NdjsonTarget(str(tmp_path / copy), None), source, "ndjson")
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / copy / "documents").iterdir()} for copy in ("one", "two")
    )
    assert one == two


def test_search_is_refused_with_advice(tmp_path):
    source, target = open_source(write_source(tmp_path / "run"), ()), target_of(tmp_path)
    kind, record = build(target, source, "ndjson")
    with pytest.raises(JobError, match="OpenSearch or Elasticsearch"):
        target.open(record)
    with pytest.raises(JobError, match="--send URL"):
        target.searcher(kind, source)
