"""Finds the target of an address: TARGET:DEST, postgresql://..., qdrant://..., or the folder of a published index.

Invariant: the library of a target is imported only if its address asks for it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from varve.config.index import TARGETS, Index
from varve.errors import JobError, RunError, one_line
from varve.indexing.index_folder import IndexFolder
from varve.indexing.record import IndexRecord
from varve.indexing.target import Searcher, Target
from varve.storage.object_store import Storage

_SERVERS = frozenset({"postgresql", "qdrant"})


@dataclass(frozen=True, slots=True)
class PublishedIndex:
    """An index that was found at an address."""

    target: Target
    record: IndexRecord

    @contextmanager
    def open(self) -> Iterator[Searcher]:
        """What answers queries.

        Raises:
            RunError: it cannot be reached, a file is missing, or the record lacks what the target's readers need.
        """
        with ExitStack() as opened:
            try:
                searcher = opened.enter_context(self.target.open(self.record))
            except (LookupError, TypeError, ValueError, ArithmeticError) as e:
                msg = (
                    f"{self.target.address}: its manifest cannot be read by this version of Varve: {type(e).__name__} "
                    f"{one_line(e)}. Compare the files with `varve index --verify`, or build the index again"
                )
                raise RunError(msg) from e
            yield searcher


def open_target(name: str, destination: str, settings: Index | None = None) -> Target:
    """The target of a name and a destination (`Index.target`, `Index.destination`).

    Args:
        name: one of `TARGETS`.
        destination: where the index is; a relative path is resolved here, since workers have other current folders.
        settings: of an index that is built; None to read one.

    Raises:
        JobError: the destination is malformed.
    """
    if name not in _SERVERS:
        destination = Storage(destination, patient=False).uri
    match name:
        case "npy" | "fbin":
            from varve.indexing.arrays.array_target import ArrayTarget  # noqa: PLC0415

            target: Target = ArrayTarget(destination, settings, name)
        case "faiss":
            from varve.indexing.faiss.faiss_target import FaissTarget  # noqa: PLC0415

            target = FaissTarget(destination, settings)
        case "usearch":
            from varve.indexing.usearch.usearch_target import UsearchTarget  # noqa: PLC0415

            target = UsearchTarget(destination, settings)
        case "lance":
            from varve.indexing.lance.lance_target import LanceTarget  # noqa: PLC0415

            target = LanceTarget(destination, settings)
        case "ndjson":
            from varve.indexing.ndjson.ndjson_target import NdjsonTarget  # noqa: PLC0415

            target = NdjsonTarget(destination, settings)
        case "postgresql":
            from varve.indexing.pgvector.pgvector_target import PgvectorTarget  # noqa: PLC0415

            target = PgvectorTarget(destination, settings)
        case _:
            from varve.indexing.qdrant.qdrant_target import QdrantTarget  # noqa: PLC0415

            target = QdrantTarget(destination, settings)
    return target


def find_index(address: str) -> PublishedIndex | None:
    """The index at an address, as `--to` names it, or of a folder that holds one; None if there is none.

    Raises:
        JobError: the address is malformed.
        RunError: it cannot be reached, or its record cannot be read.
    """
    name, _, destination = address.partition(":")
    if name in TARGETS:
        target = open_target(name, destination.removeprefix("//") if name in _SERVERS else destination)
        record = target.published()
        return None if record is None else PublishedIndex(target, record)
    try:
        record = IndexFolder(Storage(address, patient=False)).published()
    except JobError:
        return None
    return None if record is None else PublishedIndex(open_target(record.request.target, address), record)
