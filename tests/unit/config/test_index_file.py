"""Index files: each key, what is refused, and which keys decide the content of an index."""

import pickle

import pytest

from varve.config.index import TARGETS, Index
from varve.errors import JobError
from varve.indexing.open_target import open_target

BASE = {"path": "out", "to": "npy:vectors"}


def test_file_is_read_with_its_defaults(tmp_path):
    (tmp_path / "index.yaml").write_text(
        "path: s3://bucket/run\nto: faiss:s3://bucket/index\nkeep: [title, url]\nkey: id\n"
    )
    index = Index.load(str(tmp_path / "index.yaml"))
    assert (index.target, index.destination) == ("faiss", "s3://bucket/index")
    assert index.columns == ("id", "title", "url")
    assert (index.kind, index.recall, index.memory, index.feature, index.shards) == ("auto", 0.95, None, None, None)
    assert pickle.loads(pickle.dumps(index)) == index


@pytest.mark.parametrize(
    ("to", "target", "destination"),
    [
        ("npy:/data/vectors", "npy", "/data/vectors"),
        ("fbin:vectors", "fbin", "vectors"),
        ("usearch:az://container/index", "usearch", "az://container/index"),
        ("lance:C:/odd", "lance", "C:/odd"),
        ("postgresql://host:5432/db?table=docs", "postgresql", "host:5432/db?table=docs"),
        ("qdrant://host:6334/docs", "qdrant", "host:6334/docs"),
    ],
)
def test_address_is_a_target_and_a_destination(to, target, destination):
    index = Index.parse(BASE | {"to": to})
    assert (index.target, index.destination) == (target, destination)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"to": "vectors"}, ["to", "'vectors' is not allowed", "TARGET:DEST", "npy, fbin, faiss"]),
        ({"to": "numpy:x"}, ["'numpy:x' is not allowed"]),
        ({"to": "npy:"}, ["'npy:' is not allowed"]),
        ({"to": "postgresql://"}, ["'postgresql://' is not allowed"]),
        ({"to": None}, ["to"]),
        ({"path": ""}, ["path"]),
        ({"recall": 0}, ["recall", "0", "greater than 0"]),
        ({"recall": 1.01}, ["recall", "1.01", "less than or equal to 1"]),
        ({"recall": "high"}, ["recall", '"high"', "number"]),
        ({"memory": "4 bananas"}, ["memory", "'4 bananas' is not allowed", "4GB"]),
        ({"memory": 4}, ["memory", "4"]),
        ({"shards": 0}, ["shards", "0"]),
        ({"keep": "title"}, ["keep", '"title"']),
        ({"keep": ["a", "b", "a"]}, ["keep lists a column twice"]),
        ({"key": "a", "keep": ["a"]}, ["the column of key"]),
        ({"feture": "a"}, ["feture", "unknown key", "Did you mean feature?"]),
        ({"send": "https://host:9200"}, ["send needs documents", "ndjson:DEST", "'npy:vectors'"]),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(changes, fragments):
    with pytest.raises(JobError) as raised:
        Index.parse(BASE | changes, "index.yaml")
    message = str(raised.value)
    assert message.startswith("index.yaml: ")
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize(
    "changes",
    [
        {"to": "postgresql://me:hunter2@host/db"},
        {"to": "npy:https://host/x?sig=hunter2"},
        {"path": "https://me:hunter2@host/run"},
        {"to": "ndjson:docs", "send": "https://me:hunter2@host:9200"},
        {"to": "ndjson:docs", "send": "https://host:9200?api_key=hunter2"},
        {"queries": "https://host/q.jsonl?token=hunter2"},
    ],
)
def test_credential_in_an_address_is_refused_and_not_shown(changes):
    with pytest.raises(JobError, match="environment") as raised:
        Index.parse(BASE | changes)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("size", ["4GB", "4 GiB", "512M", "1e9", ".5T", "1000", "2.5e3 kB"])
def test_sizes_of_memory_are_accepted(size):
    assert Index.parse(BASE | {"memory": size}).memory == size


@pytest.mark.parametrize(("name", "value"), [("path", "other"), ("to", "npy:moved"), ("send", "https://host:9200")])
def test_addresses_do_not_decide_the_content(name, value):
    base = BASE | {"to": "ndjson:docs"}
    assert Index.parse(base | {name: value}).identity() == Index.parse(base).identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"feature": "a"},
        {"kind": "f16"},
        {"recall": 0.9},
        {"memory": "1GB"},
        {"key": "a"},
        {"keep": ["a"]},
        {"shards": 2},
    ],
    ids=str,
)
def test_settings_decide_the_content(changes):
    assert Index.parse(BASE | changes).identity() != Index.parse(BASE).identity()


@pytest.mark.parametrize("content", ["- a\n- b\n", "text", ""])
def test_file_that_is_not_a_mapping_is_refused(tmp_path, content):
    (tmp_path / "index.yaml").write_text(content)
    with pytest.raises(JobError, match=r"index\.yaml"):
        Index.load(str(tmp_path / "index.yaml"))


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(JobError, match=r"nothing\.yaml"):
        Index.load(str(tmp_path / "nothing.yaml"))


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_an_address_and_accepts_a_feature(tmp_path, name):
    destination = {"postgresql": "127.0.0.1:5432/db?table=docs", "qdrant": "127.0.0.1:6334/docs"}.get(
        name, str(tmp_path / "index")
    )
    target = open_target(name, destination)
    assert target.accepts <= {"dense", "sparse", "late"}
    assert target.accepts
    assert target.address
    assert pickle.loads(pickle.dumps(target)) == target
    assert not (tmp_path / "index").exists()
