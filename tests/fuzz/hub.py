"""Targets: answers of the Hugging Face Hub about a model and a dataset, and the files that it sends."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfFileSystem, constants

from tests.fuzz.answering_server import OTHER_HOST, answering_server
from tests.fuzz.outputs import save_model
from tests.fuzz.sources import CARD
from tests.fuzz.target import Target
from varve.config.source import Source
from varve.encoder.checkpoint.inspection import inspect_checkpoint
from varve.output.valid_text import replace_invalid
from varve.source.open_dataset import open_dataset

_COMMIT = "a" * 40
_KINDS = {"model": "/api/models/", "data": "/api/datasets/"}
# The card and the scripts of a dataset may be absent, and so may most files of a model.
_ANSWERS = {
    **{f"^{api}org/{kind}/tree/": (f"{kind}.tree.json", "ok.head.json") for kind, api in _KINDS.items()},
    **{f"^{api}": (f"{kind}.info.json", "ok.head.json") for kind, api in _KINDS.items()},
    r"^/(?:datasets/)?org/(model|data)/resolve/[^/]+/([^?]+)": (r"\1/\2", r"\1/\2.head.json"),
    r"^/cdn/([^?]+)": (r"\1", "cdn.head.json"),
}


def _head(folder: Path, name: str, status: int, **headers: str) -> None:
    (folder / f"{name}.head.json").write_text(json.dumps({"status": status, "headers": headers}))


def _make(folder: Path) -> None:
    """The files as the Hub serves them; weights are answered by a redirection, as those of large files are."""
    save_model(folder / "model")
    (folder / "data/data").mkdir(parents=True)
    rows = BytesIO()
    pq.write_table(pa.table({"text": [f"text {row}" for row in range(20)]}), rows)
    (folder / "data/data/0.parquet").write_bytes(rows.getvalue())
    (folder / "data/README.md").write_bytes(CARD.encode())
    _head(folder, "ok", 200, **{"Content-Type": "application/json"})
    _head(folder, "cdn", 200, ETag='"cdn"')
    for kind in _KINDS:
        files = {path.relative_to(folder / kind).as_posix(): path for path in sorted((folder / kind).rglob("*.*"))}
        _write_listing(folder, kind, files)


def _write_listing(folder: Path, kind: str, files: dict[str, Path]) -> None:
    entries: list[dict[str, Any]] = [{"type": "directory", "oid": "b" * 40, "size": 0, "path": "data"}]
    for name, path in files.items():
        content = path.read_bytes()
        tag = sha1(content, usedforsecurity=False).hexdigest()
        entries.append({"type": "file", "oid": tag, "size": len(content), "path": name})
        headers = {"X-Repo-Commit": _COMMIT, "ETag": f'"{tag}"'}
        if name.endswith(".safetensors"):
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{tag}"'}
            _head(folder / kind, name, 302, Location=f"{OTHER_HOST}/cdn/{kind}/{name}", **headers, **linked)
        else:
            _head(folder / kind, name, 206 if name.endswith(".parquet") else 200, **headers)
    about = {
        "id": f"org/{kind}", "author": "org", "sha": _COMMIT, "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z", "private": False, "gated": False, "disabled": False, "tags": ["x"],
        "downloads": 1, "likes": 0, "cardData": {"license": "mit"}, "siblings": [{"rfilename": name} for name in files],
    }  # fmt: skip
    (folder / f"{kind}.info.json").write_text(json.dumps(about))
    (folder / f"{kind}.tree.json").write_text(json.dumps(entries if kind == "data" else entries[1:]))


@contextmanager
def _serving(folder: Path) -> Iterator[None]:
    """Answer from the folder, to clients that know nothing of earlier answers, and do not wait between attempts."""
    server = answering_server()
    assert server.address == constants.ENDPOINT
    server.folder, server.answers = folder, _ANSWERS
    shutil.rmtree(constants.HF_HOME, ignore_errors=True)
    Path(constants.HF_HOME).mkdir()
    HfFileSystem.clear_instance_cache()
    with patch("time.sleep"):
        yield


def _read_model(folder: Path, _name: str) -> None:
    with _serving(folder):
        inspect_checkpoint("org/model")


def _read_dataset(folder: Path, _name: str) -> None:
    with _serving(folder):
        dataset = open_dataset(Source(dataset="org/data", text="text"))
        for shard in range(dataset.num_shards):
            for table in dataset.read(shard):
                replace_invalid(table).validate(full=True)  # a text need not be UTF-8


_MODEL = ("model.*.json", "ok.head.json", "cdn.head.json", "model/*.head.json", "model/config.json")
_DATASET = ("data.*.json", "ok.head.json", "data/**/*")
TARGETS = (
    Target("hub-model", _make, _MODEL, _read_model, hang_s=60.0),
    Target("hub-dataset", _make, _DATASET, _read_dataset, hang_s=60.0),
)
