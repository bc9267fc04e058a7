"""Targets: answers of an S3 store and of the head of a Ray cluster."""

import json
import os
from contextlib import suppress
from pathlib import Path

from tests.fuzz.answering_server import AnsweringServer, answering_server
from tests.fuzz.target import Target
from varve.errors import RunError
from varve.storage import retry
from varve.storage.object_store import Storage
from varve.submission.jobs_client import ClusterHead

_HEADERS = {
    "Content-Type": "application/xml",
    "ETag": '"0123456789abcdef"',
    "Last-Modified": "Tue, 01 Sep 2026 10:00:00 GMT",
}
_OBJECT = b'{"text": "an object"}'
_LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix>out/</Prefix><KeyCount>2</KeyCount>
<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated><Contents><Key>out/data/part-00000-000000000000-000000000005.parquet</Key>
<LastModified>2026-09-01T10:00:00.000Z</LastModified><ETag>"0123456789abcdef"</ETag><Size>21</Size></Contents>
<Contents><Key>out/_varve/job.json</Key><LastModified>2026-09-01T10:00:00.000Z</LastModified><ETag>"01"</ETag><Size>21</Size>
</Contents><CommonPrefixes><Prefix>out/sets/</Prefix></CommonPrefixes></ListBucketResult>
"""
_ERROR = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>AccessDenied</Code><Message>Access Denied</Message><RequestId>1</RequestId></Error>"""
_S3 = {
    r"list-type=2": ("list.xml", "list.head.json"),
    r"/denied": ("error.xml", "error.head.json"),
    r"/range": ("object.bin", "range.head.json"),
    "": ("object.bin", "object.head.json"),
}
_RAY = {
    r"/api/version": ("version.json", "ok.head.json"),
    r"/logs": ("logs.json", "ok.head.json"),
    "": ("job.json", "ok.head.json"),
}
_JOB = {
    "type": "SUBMISSION", "job_id": None, "submission_id": "varve-1", "status": "RUNNING", "message": "it runs",
    "entrypoint": "python x", "error_type": None, "start_time": 1790000000000, "end_time": None, "metadata": {},
    "runtime_env": {}, "driver_info": None, "driver_agent_http_address": "", "driver_node_id": "",
    "driver_exit_code": None,
}  # fmt: skip


def _head(folder: Path, name: str, status: int, **headers: str) -> None:
    (folder / f"{name}.head.json").write_text(json.dumps({"status": status, "headers": {**_HEADERS, **headers}}))


def _make_store(folder: Path) -> None:
    for name, content in (("list.xml", _LISTING), ("object.bin", _OBJECT), ("error.xml", _ERROR)):
        (folder / name).write_bytes(content)
    _head(folder, "list", 200)
    _head(folder, "object", 200)
    _head(folder, "error", 403)
    _head(folder, "range", 206, **{"Content-Range": "bytes 0-20/21"})


def _serve(folder: Path, answers: dict[str, tuple[str, str]]) -> AnsweringServer:
    server = answering_server()
    server.folder, server.answers = folder, answers
    return server


def _read_store(folder: Path, name: str) -> None:
    """Requests are not repeated: how long they are is tested elsewhere."""
    os.environ["AWS_ENDPOINT_URL"] = _serve(folder, _S3).address
    retry._MAX_ATTEMPTS = 1  # noqa: SLF001
    storage = Storage("s3://bucket/out", patient=False)
    if name.startswith("list"):
        assert all(isinstance(entry.name, str) and entry.size >= 0 for entry in storage.list("data"))
        return
    storage.read_at_most("object", 1000)
    storage.read("range", 0, 21)
    storage.create("object", b"content")
    if name.startswith("error"):
        with suppress(RunError):  # the valid answer is an error
            storage.read("denied")


def _make_head(folder: Path) -> None:
    version = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "session_1"}
    for name, content in (("version", version), ("job", _JOB), ("logs", {"logs": "a line\n"})):
        (folder / f"{name}.json").write_text(json.dumps(content))
    _head(folder, "ok", 200, **{"Content-Type": "application/json"})


def _read_head(folder: Path, _name: str) -> None:
    head = ClusterHead(_serve(folder, _RAY).address)
    found = head.find("varve-1")
    if found is None:
        raise RunError("unknown")  # noqa: EM101 (as the command does)
    json.dumps([found.is_over, found.message, found.exit_code])
    head.logs("varve-1")


TARGETS = (
    Target("s3-answers", _make_store, ("*.xml", "*.bin", "*.head.json"), _read_store, hang_s=20.0),
    Target("ray-answers", _make_head, ("*.json",), _read_head, hang_s=20.0),
)
