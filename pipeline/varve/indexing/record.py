"""What is recorded of an index: the request that it answers, and the manifest of a published index.

Invariants: an index without a manifest does not exist for readers; a manifest is written last, once, and holds no
credential; equal requests have equal fingerprints.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import AfterValidator, TypeAdapter

from varve.config.base import flatten
from varve.errors import RunError
from varve.output.json_text import parse_object

FORMAT = 1
REQUEST_NAME = "_varve/index.json"
RECORD_NAME = "_varve/manifest.json"


def _has(**types: Any) -> AfterValidator:
    """Accepts mappings with these keys, whoever wrote them; other keys are free."""

    def check(content: dict[str, Any]) -> dict[str, Any]:
        for key, kind in types.items():
            if not isinstance(content.get(key), kind):
                msg = f"{key} is {content.get(key)!r:.50}"
                raise ValueError(msg)  # noqa: TRY004 (pydantic expects it)
        return content

    return AfterValidator(check)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRequest:
    """What an index is made of: the vectors of a finished run, and the settings. The first object that is written.

    Attributes:
        source: path, fingerprint and manifest_sha256 of the run.
        feature: definition of the column (`output.schema.describe`).
        metric: name, and whether vectors have length 1.
        num_vectors: number of positions.
        settings: `config.index.Index.identity`.
        target: name of the target, such as faiss.
    """

    source: Annotated[dict[str, Any], _has(path=str, fingerprint=str, manifest_sha256=str)]
    feature: Annotated[dict[str, Any], _has(name=str, dtype=str, width=int)]
    metric: Annotated[dict[str, Any], _has(name=str, unit=bool)]
    num_vectors: int
    settings: Annotated[dict[str, Any], _has(key=str | None, keep=list | tuple)]
    target: str
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the request, without the path of the source."""
        content = asdict(self) | {"source": {key: self.source[key] for key in ("fingerprint", "manifest_sha256")}}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def encode(self) -> bytes:
        """The content of index.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def decode(cls, content: bytes, where: str) -> Self:
        """Parse the content of index.json.

        Raises:
            RunError: it is not a request of this version; the message begins with `where`.
        """
        return _decode(TypeAdapter(cls), content, where)

    def differences(self, other: "IndexRequest") -> list[str]:
        """One line per value in which another request differs: `name: this → other`; empty if they are the same."""
        mine, others = flatten(asdict(self)), flatten(asdict(other))
        ignored = "source.path"
        names = [name for name in dict.fromkeys([*mine, *others]) if name != ignored]
        return [f"{n}: {mine.get(n)} → {others.get(n)}" for n in names if mine.get(n) != others.get(n)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The recall of one setting of the search.

    Attributes:
        kind: of the index.
        bytes_per_vector: of this kind.
        setting: parameters of the search, such as {"nprobe": 16}.
        recall: k → share of the k exact neighbours, or of vectors that are as near, that were found; k = 1, 10, 100.
        low: lower end of the 95 % interval of recall@10.
        high: upper end.
        p50_ms: median time of one query on one thread, in milliseconds.
        p99_ms: 99th percentile.
        queries: what was asked: "rows" (leave-one-out), or the file of queries.
        num_queries: how many.
    """

    kind: str
    bytes_per_vector: float
    setting: dict[str, int]
    recall: dict[str, float]
    low: float
    high: float
    p50_ms: float
    p99_ms: float
    queries: str
    num_queries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecord:
    """The manifest of a published index.

    Attributes:
        request: what it was made of.
        kind: type of the index, such as HNSW32,SQ8; exact for formats without an index.
        setting: parameters of the search that reach the recall.
        bytes_per_vector: of the finished index.
        measurements: the curve, all kinds and settings that were measured.
        files: name → {"bytes", "sha256"} of a folder; empty for servers.
        details: what the target records for its readers.
        created_at: ISO 8601.
        versions: of the libraries that wrote it.
    """

    request: IndexRequest
    kind: str
    setting: dict[str, int]
    bytes_per_vector: float
    measurements: list[Measurement] = field(default_factory=list)
    files: dict[str, Annotated[dict[str, Any], _has(bytes=int, sha256=str)]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    created_at: str
    versions: dict[str, str]

    def encode(self) -> bytes:
        """The content of manifest.json."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def decode(cls, content: bytes, where: str) -> Self:
        """Parse the content of manifest.json.

        Raises:
            RunError: it is not a record of this version; the message begins with `where`.
        """
        return _decode(TypeAdapter(cls), content, where)


def _decode(adapter: TypeAdapter, content: bytes, where: str) -> Any:
    try:
        return adapter.validate_python(parse_object(content))
    except (ValueError, TypeError) as e:
        msg = f"{where} cannot be read by this version of Varve: {type(e).__name__} {str(e).splitlines()[0]}"
        raise RunError(msg) from e


def read_starts(values: Any, num_vectors: int) -> list[int]:
    """The first position of each file of an index, ascending from 0, whoever wrote them.

    Raises:
        ValueError: they are not that.
    """
    is_list = isinstance(values, list) and all(type(value) is int for value in values)
    if not is_list or values[:1] != [0] or any(b <= a for a, b in pairwise([*values, num_vectors])):
        msg = f"first positions {values!r:.50} of {num_vectors:,} vectors"
        raise ValueError(msg)
    return values


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """{package: version} of each installed one."""
    found: dict[str, str] = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
