"""Documents for OpenSearch and Elasticsearch in a folder: one compressed file of bulk lines per part, and mappings.

With a server (`send`) they are also sent to it. Knows nothing of searching: the server does that. Invariants: a file is
created once, and its bytes are a function of its part; a document has the same `_id` each time it is sent.
"""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from varve.config.index import Index
from varve.engine.parallel import Spread, in_threads
from varve.errors import JobError, RunError
from varve.indexing.index_folder import IndexFolder
from varve.indexing.ndjson.bulk import send_file
from varve.indexing.ndjson.document_keys import check_keys
from varve.indexing.ndjson.documents import DocumentFormat, name_weights
from varve.indexing.ndjson.mapping import check_mapping, elasticsearch_mapping, opensearch_mapping
from varve.indexing.ndjson.sent_index import SentIndex
from varve.indexing.record import REQUEST_NAME, IndexRecord, IndexRequest
from varve.indexing.rows import IndexRows
from varve.indexing.source import DENSE, SPARSE, IndexSource
from varve.indexing.target import Kind, Searcher
from varve.output.vocabulary import read_vocabulary
from varve.storage.object_store import Storage

DOCUMENTS = "documents"
OPENSEARCH, ELASTICSEARCH = "mapping.json", "mapping.elasticsearch.json"
_TEXT_BYTES = 12  # of a value, about
_SENT = "sent"


@dataclass(frozen=True)
class NdjsonTarget:
    """A folder of documents.

    Attributes:
        destination: folder or address.
        settings: of the index that is built; None to read one.
    """

    destination: str
    settings: Index | None

    @property
    def _folder(self) -> IndexFolder:
        return IndexFolder(Storage(self.destination))

    @property
    def _server(self) -> SentIndex | None:
        url = self.settings.send if self.settings else None
        return SentIndex.parse(url, self.destination) if url else None

    @property
    def _fingerprint(self) -> str:
        """Of the request that was begun."""
        storage = self._folder.storage
        return IndexRequest.decode(storage.read(REQUEST_NAME) or b"", f"{storage.uri}/{REQUEST_NAME}").fingerprint

    @property
    def address(self) -> str:
        """See `Target`."""
        return self._folder.storage.uri

    @property
    def accepts(self) -> frozenset[str]:
        """See `Target`."""
        return frozenset({DENSE, SPARSE})

    def published(self) -> IndexRecord | None:
        """The record, if the documents were also sent to the server; see `Target`."""
        record = IndexFolder(Storage(self.destination, patient=False)).published()
        server = self._server
        is_sent = record is None or server is None or server.is_published(record.request.fingerprint)
        return record if is_sent else None

    def check(self, source: IndexSource) -> None:
        """Refuse columns that no server holds, and keys that are not unique; see `Target`."""
        check_mapping(source)
        if self.settings and self.settings.key:
            check_keys(source, self.settings.key)
        if server := self._server:
            server.check()

    def begin(self, request: IndexRequest) -> None:
        """See `Target`."""
        self._folder.begin(request)

    def kinds(self, source: IndexSource) -> Sequence[Kind]:
        """One kind without an index; see `Target`."""
        if self.settings is not None and self.settings.kind not in {"auto", "exact"}:
            msg = f"kind: {self.settings.kind!r} is not allowed: the server builds the index; expected exact"
            raise JobError(msg)
        return (Kind("exact", float(_TEXT_BYTES * source.width)),)

    def train(self, kind: Kind, source: IndexSource) -> None:  # noqa: ARG002
        """Write the mappings, and create the index on the server; see `Target`."""
        mappings = _mappings(source, self.settings.key if self.settings else None)
        for name, mapping in mappings.items():
            self._folder.storage.create(name, json.dumps(mapping, indent=1).encode())
        if server := self._server:
            name = OPENSEARCH if server.is_opensearch() else ELASTICSEARCH
            if name not in mappings:
                msg = f"{source.column.name} has {source.width:,} dimensions: Elasticsearch holds at most 4,096"
                raise RunError(msg)
            server.create(self._fingerprint, mappings[name])

    def added(self, kind: Kind, source: IndexSource) -> set[int]:  # noqa: ARG002
        """See `Target`."""
        names = {entry.name for entry in self._folder.storage.list(DOCUMENTS)}
        return {part for part in range(source.num_parts) if not _positions(source, part) or _name(part) in names}

    def add(self, kind: Kind, source: IndexSource, rows: IndexRows) -> None:  # noqa: ARG002
        """Write the documents of one part; see `Target`."""
        if not len(rows):
            return
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as file:
            for block in self._format(source).blocks(rows):
                file.write(block)
        self._folder.storage.create(_name(rows.part), sink.getvalue().to_pybytes())

    def _format(self, source: IndexSource) -> DocumentFormat:
        names = name_weights(read_vocabulary(source.output.storage)) if source.kind == SPARSE else None
        key = self.settings.key if self.settings else None
        return DocumentFormat(source.column.name, key, source.column.dtype == "binary", names)

    def pieces(self, kind: Kind, source: IndexSource) -> int:  # noqa: ARG002
        """Parts to send, if there is a server; see `Target`."""
        return source.num_parts if self._server else 0

    def finish(self, kind: Kind, source: IndexSource, piece: int) -> None:  # noqa: ARG002
        """Send the documents of one part, unless the server has them; see `Target`."""
        server, positions = self._server, _positions(source, piece)
        if server is None or not positions:
            return
        fingerprint = self._fingerprint
        if server.count(fingerprint, positions) == len(positions):
            return
        with TemporaryDirectory(prefix="varve-") as scratch:
            path = self._folder.local_file(_name(piece), Path(scratch))
            sent = send_file(server.server, server.name(fingerprint), path, _name(piece))
        if sent != len(positions):
            msg = f"{self.address}/{_name(piece)} has {sent:,} documents, expected {len(positions):,}"
            raise RunError(msg)

    def searcher(self, kind: Kind, source: IndexSource) -> AbstractContextManager[Searcher]:  # noqa: ARG002
        """Raises JobError: documents are searched by a server."""
        raise self._no_search()

    def publish(
        self,
        kind: Kind,  # noqa: ARG002
        source: IndexSource,
        record: IndexRecord,
        spread: Spread = in_threads,
    ) -> IndexRecord:
        """Switch the server's alias, then write the manifest; see `Target`."""
        server = self._server
        details = {_SENT: server.publish(self._fingerprint, source.num_vectors)} if server else {}
        filled = [part for part in range(source.num_parts) if _positions(source, part)]
        names = [*map(_name, filled), *_mappings(source, self.settings.key if self.settings else None)]
        return self._folder.publish(replace(record, details=details), names, spread)

    def clean(self, record: IndexRecord) -> None:  # noqa: ARG002
        """See `Target`."""
        self._folder.remove_staged()

    def verify(self, record: IndexRecord) -> list[str]:
        """See `Target`."""
        return self._folder.verify(record)

    def open(self, record: IndexRecord) -> AbstractContextManager[Searcher]:  # noqa: ARG002
        """Raises JobError: documents are searched by a server."""
        raise self._no_search()

    def _no_search(self) -> JobError:
        return JobError(
            f"{self.address} holds documents for OpenSearch or Elasticsearch, which search them. Send them to a server "
            "with --send URL, or search the output itself"
        )


def _mappings(source: IndexSource, key: str | None) -> dict[str, dict[str, Any]]:
    """Name of the file → body of the request that creates the index."""
    found = {OPENSEARCH: opensearch_mapping(source, key), ELASTICSEARCH: elasticsearch_mapping(source, key)}
    return {name: mapping for name, mapping in found.items() if mapping}


def _positions(source: IndexSource, part: int) -> range:
    return range(int(source.starts[part]), int(source.starts[part + 1]))


def _name(part: int) -> str:
    return f"{DOCUMENTS}/part-{part:06d}.ndjson.zst"
