"""Documents that are sent to a server: all of them, once in effect, visible in one step, errors per document."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError

import numpy as np
import pytest

from tests.index_sources import ERRORS, ROWS, build, clustered, open_source, request_of, write_source
from tests.outputs import column, write_output
from tests.servers.opensearch import ask, opensearch
from tests.servers.processes import free_port
from tests.servers.proxy import proxy
from varve.config.index import Index
from varve.errors import JobError, RunError
from varve.indexing.ndjson.bulk import batches
from varve.indexing.ndjson.ndjson_target import NdjsonTarget
from varve.indexing.ndjson.search_server import SearchServer

SENT = ROWS - len(ERRORS)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with opensearch(tmp_path_factory.mktemp("opensearch")) as url:
        yield url


@pytest.fixture
def docs(server):
    """The URL of an alias that no other test uses."""
    alias = f"docs-{free_port()}"
    return f"{server}/?index={alias}", f"{server}/{alias}"


def target_of(tmp_path, url, name="index", **settings) -> NdjsonTarget:
    index = Index(path=str(tmp_path / "run"), to=f"ndjson:{tmp_path}/{name}", send=url, **settings)
    return NdjsonTarget(index.destination, index)


def count(address: str) -> int:
    return ask(f"{address}/_count")["count"]


def indexes(address: str) -> list[str]:
    """Names of the indexes behind an alias."""
    return list(ask(f"{address}/_alias"))


def test_documents_arrive_with_their_ids_and_vectors(tmp_path, docs):
    url, address = docs
    source, target = open_source(write_source(tmp_path / "run")), target_of(tmp_path, url, key="doc_id", keep=["title"])
    _, record = build(target, source, "ndjson")
    assert count(address) == SENT
    (name,) = indexes(address)
    assert record.details["sent"] == {
        "server": url.partition("/?")[0],
        "index": name,
        "alias": address.rpartition("/")[2],
        "documents": SENT,
    }
    rows = source.read(2)
    for row in (0, 57, len(rows) - 1):
        expected = rows.ids.slice(row, 1).to_pylist()[0]
        document = ask(f"{address}/_doc/{expected['doc_id']}")["_source"]
        vector = np.array(document.pop("embedding"), np.float64).astype(np.float32)
        assert vector.tobytes() == rows.dense[row].tobytes()
        assert document == expected


def test_mapping_and_settings_are_those_for_searching(tmp_path, docs):
    url, address = docs
    build(target_of(tmp_path, url), open_source(write_source(tmp_path / "run"), ()), "ndjson")
    (found,) = ask(address).values()
    assert found["mappings"]["properties"]["embedding"]["type"] == "knn_vector"
    assert "refresh_interval" not in found["settings"]["index"]
    assert found["settings"]["index"]["knn"] == "true"


def test_second_build_asks_the_server_and_does_nothing(tmp_path, docs):
    url, address = docs
    source, target = open_source(write_source(tmp_path / "run"), ()), target_of(tmp_path, url)
    _, record = build(target, source, "ndjson")
    assert target.published() == record
    with proxy(url.partition("/?")[0], tmp_path) as control:
        control.faults(slow_down=1, match="_bulk")  # documents would not arrive
        build(target_of(tmp_path, url.replace(url.partition("/?")[0], control.endpoint)), source, "ndjson")
    assert count(address) == SENT
    assert len(indexes(address)) == 1


def test_documents_that_are_sent_again_leave_the_count(tmp_path, docs):
    url, address = docs
    source, target = open_source(write_source(tmp_path / "run"), ()), target_of(tmp_path, url)
    kind, record = build(target, source, "ndjson")
    ask(f"{address}/_doc/0%2F0", "DELETE")
    ask(f"{address}/_refresh", "POST")
    for part in range(target.pieces(kind, source)):  # the first part is sent again
        target.finish(kind, source, part)
    target.publish(kind, source, record)
    assert count(address) == SENT


def test_files_of_an_earlier_build_are_sent_when_a_server_is_named(tmp_path, docs):
    url, address = docs
    source = open_source(write_source(tmp_path / "run"), ())
    without, target = target_of(tmp_path, None), target_of(tmp_path, url)
    _, record = build(without, source, "ndjson")
    assert without.published() == record
    assert target.published() is None
    build(target, source, "ndjson")
    assert target.published() == record
    assert count(address) == SENT


def test_alias_is_switched_only_when_all_documents_are_there(tmp_path, docs):
    url, address = docs
    build(target_of(tmp_path, url), open_source(write_source(tmp_path / "run"), ()), "ndjson")
    (before,) = indexes(address)
    path = write_source(tmp_path / "other", rows=800, fingerprint="e" * 64)
    source, target = open_source(path, ()), target_of(tmp_path, url, "next")
    target.check(source)
    target.begin(request_of(source, "ndjson"))
    (kind,) = target.kinds(source)
    target.train(kind, source)
    for part in range(source.num_parts):
        target.add(kind, source, source.read(part))
        target.finish(kind, source, part)
        assert indexes(address) == [before]
        assert count(address) == SENT
    build(target, source, "ndjson")
    assert indexes(address) != [before]
    assert len(indexes(address)) == 1
    assert count(address) == 800 - len(ERRORS)
    with pytest.raises(HTTPError, match="404"):  # the replaced index is removed
        ask(f"{url.partition('/?')[0]}/{before}")


def test_index_of_another_program_behind_the_alias_is_kept(tmp_path, docs):
    url, address = docs
    server, alias = url.partition("/?")[0], address.rpartition("/")[2]
    ask(f"{server}/mine-{alias}", "PUT", {})
    ask(f"{server}/_aliases", "POST", {"actions": [{"add": {"index": f"mine-{alias}", "alias": alias}}]})
    build(target_of(tmp_path, url), open_source(write_source(tmp_path / "run"), ()), "ndjson")
    assert f"mine-{alias}" not in indexes(address)
    assert f"mine-{alias}" in ask(f"{server}/mine-{alias}")


def test_refused_documents_are_reported_with_their_reasons(tmp_path, docs):
    url, address = docs
    source, target = open_source(write_source(tmp_path / "run")), target_of(tmp_path, url, key="doc_id")
    (kind,) = target.kinds(source)
    target.begin(request := request_of(source, "ndjson"))
    name = f"{address}__{request.fingerprint[:8]}"
    field = {"type": "knn_vector", "dimension": 16}
    ask(name, "PUT", {"mappings": {"properties": {"embedding": field}}, "settings": {"index": {"knn": True}}})
    target.train(kind, source)
    target.add(kind, source, source.read(0))
    with pytest.raises(RunError) as raised:
        target.finish(kind, source, 0)
    message = str(raised.value)
    assert "refused 149 of 149 documents of documents/part-000000.ndjson.zst" in message
    assert '"doc-0": ' in message
    assert "Expected: 16, Given: 32" in message
    assert "and 146 more" in message
    with pytest.raises(HTTPError, match="404"):
        ask(address)


def test_missing_documents_are_found_before_the_alias_is_switched(tmp_path, docs):
    url, address = docs
    source, target = open_source(write_source(tmp_path / "run"), ()), target_of(tmp_path, url)
    target.begin(request := request_of(source, "ndjson"))
    (kind,) = target.kinds(source)
    target.train(kind, source)
    for part in range(source.num_parts - 1):
        target.add(kind, source, source.read(part))
        target.finish(kind, source, part)
    record = replace(build(target_of(tmp_path, None, "other"), source, "ndjson")[1], request=request)
    with pytest.raises(RunError, match=r"documents, expected 997"):
        target.publish(kind, source, record)
    with pytest.raises(HTTPError, match="404"):
        ask(address)
    assert target.published() is None


def test_documents_survive_a_failing_server(tmp_path, docs):
    url, address = docs
    server = url.partition("/?")[0]
    source = open_source(write_source(tmp_path / "run"), ())
    with proxy(server, tmp_path) as control:
        control.faults(slow_down=0.15, reset=0.08, lost=0.1, seed=5)
        build(target_of(tmp_path, url.replace(server, control.endpoint)), source, "ndjson")
        build(target_of(tmp_path, url.replace(server, control.endpoint), "copy"), source, "ndjson", None)
        counts = control.counts()
    assert min(counts[fault] for fault in ("slow_down", "reset", "lost")) > 0
    assert count(address) == SENT
    assert len(indexes(address)) == 1


@contextmanager
def answering(answer) -> Iterator[str]:
    """A server whose answers a function gives: (method, path, body, headers) → (status, JSON)."""

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = answer(self.command, self.path, body, self.headers)
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_POST = do_PUT = do  # noqa: N815

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Busy:
    """Takes a document when it is sent for the second time; the first answer is 429."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.headers: list = []

    def __call__(self, method, path, body, headers):
        self.headers.append(headers)
        if path.endswith("/_bulk"):
            names = [json.loads(line)["index"]["_id"] for line in body.splitlines()[::2]]
            self.sent.update(names)
            statuses = [201 if self.sent[name] > 1 else 429 for name in names]
            errors = {"type": "es_rejected_execution_exception", "reason": "rejected"}
            pairs = zip(names, statuses, strict=True)
            return 200, {
                "items": [{"index": {"_id": n, "status": s} | ({"error": errors} if s > 300 else {})} for n, s in pairs]
            }
        if "_alias" in path or (method == "GET" and path == "/docs"):
            return (404, {"error": "missing"}) if method == "GET" else (200, {})
        counted = len([name for name, times in self.sent.items() if times > 1])
        return 200, {"count": 0 if method == "POST" else counted, "version": {"distribution": "opensearch"}}


def test_documents_that_the_server_was_too_busy_for_are_sent_again(tmp_path):
    busy = Busy()
    source = open_source(write_source(tmp_path / "run"), ())
    with answering(busy) as url:
        build(target_of(tmp_path, f"{url}/?index=docs"), source, "ndjson")
    assert len(busy.sent) == SENT
    assert set(busy.sent.values()) == {2}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OPENSEARCH_USERNAME": "me", "OPENSEARCH_PASSWORD": "SKTEST"}, "Basic bWU6U0tURVNU"),
        ({"ELASTIC_API_KEY": "SKTEST"}, "ApiKey SKTEST"),
    ],
)
def test_credentials_come_from_the_environment(tmp_path, monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    busy = Busy()
    source = open_source(write_source(tmp_path / "run"), ())
    with answering(busy) as url:
        target = target_of(tmp_path, f"{url}/?index=docs")
        build(target, source, "ndjson")
    assert {headers["Authorization"] for headers in busy.headers} == {expected}
    written = b"".join(path.read_bytes() for path in (tmp_path / "index").rglob("*.*"))
    assert b"SKTEST" not in written
    assert "SKTEST" not in repr(target)


def test_refused_credentials_are_reported_without_a_retry(tmp_path, monkeypatch):
    monkeypatch.setenv("ELASTIC_API_KEY", "SKTEST")
    asked = Counter()

    def refuse(method, path, body, headers):
        asked[path] += 1
        return 401, {"error": {"type": "security_exception", "reason": "no permissions"}}

    with answering(refuse) as url, pytest.raises(RunError, match=r"no permissions.*OPENSEARCH_USERNAME") as raised:
        target_of(tmp_path, f"{url}/?index=docs").check(open_source(write_source(tmp_path / "run"), ()))
    assert asked.total() == 1
    assert "SKTEST" not in str(raised.value)


def test_server_that_cannot_be_reached_is_reported_soon(tmp_path):
    target = target_of(tmp_path, f"http://127.0.0.1:{free_port()}/?index=docs")
    with pytest.raises(RunError, match="cannot be reached"):
        target.check(open_source(write_source(tmp_path / "run"), ()))
    assert not (tmp_path / "index").exists()


def test_alias_that_is_an_index_is_refused(tmp_path, docs):
    url, address = docs
    ask(address, "PUT", {})
    with pytest.raises(JobError, match="is an index, not an alias"):
        target_of(tmp_path, url).check(open_source(write_source(tmp_path / "run"), ()))


@pytest.mark.parametrize(
    ("url", "name", "message"),
    [
        ("127.0.0.1:9200", "index", "expected https://HOST:PORT"),
        ("ftp://host/", "index", "expected https://HOST:PORT"),
        ("http://127.0.0.1:9200/?index=Docs", "index", "'Docs' cannot be the name of an index"),
        ("http://127.0.0.1:9200", "_index", "'_index' cannot be the name of an index"),
    ],
)
def test_wrong_addresses_are_refused(tmp_path, url, name, message):
    with pytest.raises(JobError, match=message):
        target_of(tmp_path, url, name).check(open_source(write_source(tmp_path / "run"), ()))


def test_name_of_the_index_is_the_last_folder(tmp_path, server):
    source = open_source(write_source(tmp_path / "run"), ())
    name = f"Folder-{free_port()}"
    build(target_of(tmp_path, server, name), source, "ndjson")
    assert count(f"{server}/{name.lower()}") == SENT


def test_requests_have_at_most_the_given_bytes():
    documents = [b"x" * size for size in (4, 4, 3, 1, 20, 2, 9)]
    assert [[len(each) for each in batch] for batch in batches(documents, 10)] == [[4, 4], [3, 1], [20], [2], [9]]
    assert list(batches([])) == []


def test_large_parts_are_sent_in_several_requests(tmp_path, docs):
    url, address = docs
    server = url.partition("/?")[0]
    definition = column("embedding", 1024, pool="mean", layer=12)
    path = write_output(
        tmp_path / "run", {definition: clustered(2000, 1024)}, {"title": ["a"] * 2000}, rows_per_part=2000
    )
    with proxy(server, tmp_path) as control:
        control.faults(match="_bulk")
        build(target_of(tmp_path, url.replace(server, control.endpoint)), open_source(path, ()), "ndjson")
        posts = control.counts()["POST"]
    assert posts >= 3  # 24 MB
    assert count(address) == 2000


def test_server_keeps_its_path_and_loses_its_parameters():
    assert SearchServer.parse("https://host:9200/behind/?index=docs").url == "https://host:9200/behind"
