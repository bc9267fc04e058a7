"""Qdrant's own engine behind a small HTTP server: what the tests of the Qdrant target talk to.

Real are the storage, its write-ahead log, HNSW graphs, quantization, sparse and multi-vectors, payload indexes,
filters and scores: each collection is an `EdgeShard` (qdrant-edge-py, Qdrant's Rust code) in a folder, so a kill of
this process tests what a kill of a server would. Not real is the layer above: the REST routes (only the ones that the
target calls), the names and aliases of collections, their metadata, the status, and the moment at which the optimizer
runs (after a PATCH, in a thread). One shard, one node. A real server can also refuse what this one accepts.

    python -m tests.servers.qdrant FOLDER PORT [--refuse SHARE] [--lose SHARE] [--seed N] [--version V]

QDRANT_TEST_KEY is the key that requests must have.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from tests.servers.processes import answers, end, free_port, start
from tests.waiting import wait_until

VERSION = "1.16.3"
HNSW = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10}
THRESHOLD_KB = 10_000


class RequestError(Exception):
    """An answer with a status of its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def edge_config(config: dict) -> edge.EdgeConfig:
    """The engine's form of the body of `PUT /collections/NAME`."""
    vectors, sparse = config.get("vectors"), config.get("sparse_vectors") or {}
    return edge.EdgeConfig(
        vectors=_vector_params(vectors) if vectors else None,
        sparse_vectors={name: edge.EdgeSparseVectorParams() for name in sparse} or None,
        hnsw_config=edge.HnswIndexConfig(**{**HNSW, **config.get("hnsw_config", {})}),
        quantization_config=_quantization(config.get("quantization_config")),
        optimizers=edge.EdgeOptimizersConfig(
            indexing_threshold=config.get("optimizers_config", {}).get("indexing_threshold", THRESHOLD_KB),
            default_segment_number=1,
        ),
    )


def _vector_params(vectors: dict) -> edge.EdgeVectorParams:
    multi = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim) if vectors.get("multivector_config") else None
    datatype = {"float16": edge.VectorStorageDatatype.Float16}.get(vectors.get("datatype", ""))
    distance = getattr(edge.Distance, vectors["distance"])
    return edge.EdgeVectorParams(
        vectors["size"], distance, on_disk=vectors.get("on_disk"), multivector_config=multi, datatype=datatype
    )


def _quantization(config: dict | str | None) -> edge.ScalarQuantizationConfig | None:
    if not isinstance(config, dict):
        return None
    return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, config["scalar"].get("quantile"))


def edge_vector(vector: Any) -> Any:
    if isinstance(vector, dict) and "indices" in vector:
        return edge.SparseVector(vector["indices"], vector["values"])
    return {name: edge_vector(each) for name, each in vector.items()} if isinstance(vector, dict) else vector


def rest_vector(vector: Any) -> Any:
    if isinstance(vector, edge.SparseVector):
        return {"indices": vector.indices, "values": vector.values}
    return {name: rest_vector(each) for name, each in vector.items()} if isinstance(vector, dict) else vector


def edge_filter(content: dict | None) -> edge.Filter:
    return edge.Filter(must=[_condition(each) for each in (content or {"must": []})["must"]])


def _condition(content: dict) -> edge.FieldCondition:
    if "range" in content:
        bounds = {name: float(value) for name, value in content["range"].items() if value is not None}
        return edge.FieldCondition(content["key"], range=edge.RangeFloat(**bounds))
    return edge.FieldCondition(content["key"], match=edge.MatchAny(content["match"]["any"]))


def edge_query(content: dict) -> edge.QueryRequest:
    params = content.get("params") or {}
    quantization = params.get("quantization")
    vector = (
        content["query"]["nearest"] if isinstance(content["query"], dict) and "nearest" in content["query"] else None
    )
    return edge.QueryRequest(
        limit=content["limit"],
        query=edge.Query.Nearest(
            edge_vector(content["query"] if vector is None else vector), using=content.get("using")
        ),
        with_payload=content.get("with_payload", False),
        params=edge.SearchParams(
            hnsw_ef=params.get("hnsw_ef"),
            exact=params.get("exact", False),
            quantization=edge.QuantizationSearchParams(**quantization) if quantization else None,
        ),
    )


@dataclass
class Collection:
    """An `EdgeShard` in a folder, and its configuration in REST form."""

    folder: Path
    config: dict
    shard: edge.EdgeShard = field(init=False)
    lock: threading.RLock = field(default_factory=threading.RLock)
    pending: int = 0
    is_grey: bool = False  # after a start, a server optimizes when the next update arrives

    def __post_init__(self) -> None:
        path = self.folder / "shard"
        exists = path.exists() and any(path.iterdir())
        path.mkdir(parents=True, exist_ok=True)
        config = edge_config(self.config)
        self.shard = edge.EdgeShard.load(str(path), config) if exists else edge.EdgeShard.create(str(path), config)
        self.is_grey = exists and bool(self.config.get("hnsw_config", {}).get("m", HNSW["m"]))

    def save(self) -> None:
        replace(self.folder / "config.json", self.config)

    def change(self, changes: dict) -> None:
        """Merge new settings as a server does, and run the optimizer in a thread if the index changes."""
        with self.lock:
            changes = dict(changes)
            if vectors := changes.pop("vectors", None):
                self.config["vectors"] |= vectors[""]
            for name, value in changes.items():
                old = self.config.get(name)
                self.config[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
            self.save()
            if changes.keys() - {"metadata"}:
                self.shard.close()
                self.shard = edge.EdgeShard.load(str(self.folder / "shard"), edge_config(self.config))
                self.optimize()

    def optimize(self) -> None:
        self.is_grey = False

        def work() -> None:
            with self.lock:
                self.shard.optimize()
                self.shard.flush()
                self.pending -= 1

        self.pending += 1
        threading.Thread(target=work, daemon=True).start()

    def info(self) -> dict:
        if self.pending:
            counts = {"indexed_vectors_count": 0, "points_count": 0, "segments_count": 1}
        else:
            with self.lock:
                found = self.shard.info()
            names = ("indexed_vectors_count", "points_count", "segments_count")
            counts = {name: getattr(found, name) for name in names}
        config = {
            "params": {name: self.config[name] for name in ("vectors", "sparse_vectors") if name in self.config},
            "hnsw_config": {**HNSW, **self.config.get("hnsw_config", {})},
            "optimizer_config": {"default_segment_number": 1, "flush_interval_sec": 5},
            "metadata": self.config.get("metadata"),
        }
        status = "yellow" if self.pending else "grey" if self.is_grey else "green"
        return {"status": status, "optimizer_status": "ok", **counts, "config": config, "payload_schema": {}}


def replace(path: Path, content: Any) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content))
    new.replace(path)


class Server:
    """The collections and aliases of a folder, and the routes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "aliases.json"
        self.aliases: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        saved = {config.parent.name: json.loads(config.read_text()) for config in folder.glob("*/config.json")}
        self.collections = {name: Collection(folder / name, config) for name, config in saved.items()}

    def find(self, name: str) -> Collection:
        with self.lock:
            found = self.collections.get(self.aliases.get(name, name))
        if found is None:
            raise RequestError(404, f"Not found: Collection `{name}` doesn't exist!")
        return found

    def create(self, name: str, body: dict) -> bool:
        with self.lock:
            if name in self.collections or name in self.aliases:
                raise RequestError(409, f"Wrong input: Collection `{name}` already exists!")
            (self.folder / name).mkdir(exist_ok=True)
            collection = Collection(self.folder / name, body)
            collection.save()
            self.collections[name] = collection
        return True

    def change(self, name: str, body: dict) -> bool:
        self.find(name).change(body)
        return True

    def delete(self, name: str, _body: dict) -> bool:
        with self.lock:
            collection = self.collections.pop(name, None)
            if collection is None:
                return False
            self._save_aliases({alias: of for alias, of in self.aliases.items() if of != name})
        with collection.lock:
            collection.shard.close()
            shutil.rmtree(collection.folder)
        return True

    def change_aliases(self, body: dict) -> bool:
        with self.lock:
            changed = dict(self.aliases)
            for action in body["actions"]:
                if "delete_alias" in action:
                    changed.pop(action["delete_alias"]["alias_name"], None)
                else:
                    new = action["create_alias"]
                    if new["alias_name"] in self.collections:
                        raise RequestError(409, f"Wrong input: Collection `{new['alias_name']}` already exists!")
                    self.find(new["collection_name"])
                    changed[new["alias_name"]] = new["collection_name"]
            self._save_aliases(changed)
        return True

    def _save_aliases(self, aliases: dict[str, str]) -> None:
        replace(self.folder / "aliases.json", aliases)
        self.aliases = aliases

    def create_index(self, name: str, body: dict) -> dict:
        schema = {"integer": edge.PayloadSchemaType.Integer}[body["field_schema"]]
        collection = self.find(name)
        with collection.lock:
            collection.shard.update(edge.UpdateOperation.create_field_index(body["field_name"], schema))
        return {"operation_id": 1, "status": "completed"}

    def upsert(self, name: str, body: dict) -> dict:
        collection = self.find(name)
        if "batch" in body:
            batch = body["batch"]
            points = zip(batch["ids"], batch["vectors"], batch["payloads"], strict=True)
        else:
            points = ((point["id"], point["vector"], point["payload"]) for point in body["points"])
        upserted = [edge.Point(key, edge_vector(vector), payload) for key, vector, payload in points]
        with collection.lock:
            collection.shard.update(edge.UpdateOperation.upsert_points(upserted))
        return {"operation_id": 1, "status": "completed"}

    def delete_points(self, name: str, body: dict) -> dict:
        collection = self.find(name)
        with collection.lock:
            collection.shard.update(edge.UpdateOperation.delete_points_by_filter(edge_filter(body["filter"])))
        return {"operation_id": 1, "status": "completed"}

    def count(self, name: str, body: dict) -> dict:
        collection = self.find(name)
        with collection.lock:
            request = edge.CountRequest(exact=body.get("exact", True), filter=edge_filter(body.get("filter")))
            return {"count": collection.shard.count(request)}

    def scroll(self, name: str, body: dict) -> dict:
        collection = self.find(name)
        request = edge.ScrollRequest(
            limit=body["limit"],
            filter=edge_filter(body.get("filter")),
            with_payload=body.get("with_payload", True),
            with_vector=body.get("with_vector", False),
        )
        with collection.lock:
            found, following = collection.shard.scroll(request)
        points = [{"id": str(p.id), "payload": p.payload, "vector": rest_vector(p.vector)} for p in found]
        return {"points": points, "next_page_offset": None if following is None else str(following)}

    def query(self, name: str, body: dict) -> list:
        collection = self.find(name)
        with collection.lock:
            found = [collection.shard.query(edge_query(search)) for search in body["searches"]]
        return [{"points": [_scored(point) for point in points]} for points in found]

    def route(self, method: str, path: str, body: dict) -> Any:
        if (method, path) == ("GET", "/collections"):
            return {"collections": [{"name": name} for name in self.collections]}
        if (method, path) == ("GET", "/aliases"):
            aliases = [{"alias_name": name, "collection_name": of} for name, of in self.aliases.items()]
            return {"aliases": aliases}
        if (method, path) == ("POST", "/collections/aliases"):
            return self.change_aliases(body)
        name, _, action = path.removeprefix("/collections/").partition("/")
        if (method, action) == ("GET", ""):
            return self.find(name).info()
        if (method, action) == ("GET", "exists"):
            return {"exists": name in self.collections or name in self.aliases}
        routes: dict[tuple[str, str], Callable[[str, dict], Any]] = {
            ("PUT", ""): self.create, ("PATCH", ""): self.change, ("DELETE", ""): self.delete,
            ("PUT", "index"): self.create_index, ("PUT", "points"): self.upsert,
            ("POST", "points/delete"): self.delete_points, ("POST", "points/count"): self.count,
            ("POST", "points/scroll"): self.scroll, ("POST", "points/query/batch"): self.query,
            ("POST", "points/query"): lambda name, body: self.query(name, {"searches": [body]})[0],
        }  # fmt: skip
        if (method, action) not in routes:
            raise RequestError(404, f"this server has no {method} {path}")
        return routes[method, action](name, body)


def _scored(point: edge.ScoredPoint) -> dict:
    return {"id": str(point.id), "version": 0, "score": point.score, "payload": point.payload}


def handler(server: Server, options: argparse.Namespace) -> type[BaseHTTPRequestHandler]:
    faults = random.Random(options.seed)
    key = os.environ.get("QDRANT_TEST_KEY")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

        def _respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = re.sub(r"\?.*", "", self.path)
            if key and self.headers.get("api-key") != key:
                self._send(401, {"status": {"error": "Invalid API key or JWT"}})
                return
            if path == "/":
                self._send(200, {"title": "qdrant - vector search engine", "version": options.version})
                return
            if faults.random() < options.refuse:
                self._send(503, {"status": {"error": "Service unavailable"}})
                return
            status, content = self._answer(path, body)
            if faults.random() < options.lose:  # after the request has taken effect
                self.close_connection = True
                return
            self._send(status, content)

        def _answer(self, path: str, body: bytes) -> tuple[int, dict]:
            try:
                result = server.route(self.command, path, json.loads(body or b"{}"))
            except RequestError as e:
                return e.status, {"status": {"error": str(e)}, "time": 0.0}
            except Exception as e:  # noqa: BLE001 (the engine's refusal of a request)
                return 400, {"status": {"error": f"Wrong input: {e}"}, "time": 0.0}
            return 200, {"result": result, "status": "ok", "time": 0.0}

        def _send(self, status: int, content: dict) -> None:
            encoded = json.dumps(content).encode()
            with suppress(OSError):  # the client was killed
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                self.wfile.write(encoded)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _respond  # noqa: N815

    return Handler


@dataclass
class RunningServer:
    """A server in a process of its own."""

    folder: Path
    options: tuple[str, ...]
    environment: dict[str, str]
    port: int
    process: subprocess.Popen | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"qdrant://{self.host}"

    def start(self, *options: str) -> None:
        command = [sys.executable, "-m", "tests.servers.qdrant", str(self.folder / "data"), str(self.port)]
        log = self.folder / "qdrant.log"
        self.process = start([*command, *self.options, *options], log, env={**os.environ, **self.environment})
        wait_until(lambda: answers(f"http://{self.host}/"), "Qdrant's engine", log, self.process)

    def pid(self) -> int:
        """Of its process."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextmanager
def qdrant(folder: Path, *options: str, key: str | None = None) -> Iterator[RunningServer]:
    """A server on a free port of the loopback interface, which keeps its collections in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RunningServer(folder, options, {"QDRANT_TEST_KEY": key} if key else {}, free_port())
    server.start()
    try:
        yield server
    finally:
        assert server.process is not None
        end([server.process])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--refuse", type=float, default=0.0, help="share of requests that are answered with 503")
    parser.add_argument("--lose", type=float, default=0.0, help="share of answers that are lost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--version", default=VERSION)
    options = parser.parse_args()
    ThreadingHTTPServer.request_queue_size = 64
    ThreadingHTTPServer(("127.0.0.1", options.port), handler(Server(options.folder), options)).serve_forever()


if __name__ == "__main__":
    main()
