"""Builds a search index of a finished output, proves its recall, and publishes it.

Works with any `Target`. Invariants: nothing is published whose recall was not measured and found sufficient, or whose
rows differ from the source; an interrupted build continues with the parts that the target does not list; a build that
is published already does nothing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from varve.cluster.memory_limit import default_bytes, parse_bytes
from varve.config.index import Index
from varve.engine.parallel import Spread, choose_spread
from varve.errors import JobError, RunError
from varve.indexing.open_target import open_target
from varve.indexing.part_pass import OnStep, Tasks, add_parts
from varve.indexing.recall import Proof, ProofQueries, prove, recall_table
from varve.indexing.record import IndexRecord, IndexRequest, Measurement, installed_versions
from varve.indexing.request import answers, make_request
from varve.indexing.row_check import check_rows
from varve.indexing.source import DENSE, IndexSource
from varve.indexing.target import Kind, Target
from varve.monitoring.progress_line import data_size
from varve.output import feature_sets

EXACT = "exact"  # the kind of formats without an index: there is no recall to prove
_LIBRARIES = ("varve", "numpy", "pyarrow", "faiss-cpu", "usearch", "pylance", "pgvector", "qdrant-client")
_MEMORY_SHARE = 0.5  # of the machine's memory, if no limit is given
_LEAST_BYTES = 10**4
# Exact scores of sparse and late vectors take much longer than those of dense ones.
_PROOF_ROWS, _PROOF_LISTS = 1000, 100

logger = logging.getLogger("varve")


@dataclass(frozen=True, slots=True)
class Built:
    """The result of a build.

    Attributes:
        record: of the published index.
        address: where it is.
        finished_before: whether it was published by an earlier build.
    """

    record: IndexRecord
    address: str
    finished_before: bool


def build(settings: Index, spread: Spread | None = None, on_step: OnStep = lambda _step, _done, _total: None) -> Built:
    """Build an index until it is published, or continue an interrupted build.

    Args:
        settings: the index file.
        spread: runs the work on parts in parallel; None: threads, or Ray for large outputs and on a cluster.
        on_step: called with (step, parts that are done, number of parts).

    Raises:
        JobError: a setting is wrong, the output is not finished, or the target holds another index.
        RunError: no kind reaches the recall within the memory, or the output or the target failed.
    """
    output = feature_sets.open(settings.path)
    target = open_target(settings.target, settings.destination, settings)
    published = target.published()
    if published and answers(published, output, settings):
        target.clean(published)
        return Built(published, target.address, finished_before=True)
    source = IndexSource.open(output, settings.feature, settings.columns)
    if source.kind not in target.accepts:
        msg = f"{source.column.name} is a {source.kind} feature: {settings.target} holds {', '.join(target.accepts)}"
        raise JobError(msg)
    if not source.num_vectors:
        msg = f"{output.storage.uri} has no vectors of {source.column.name}: all rows have errors"
        raise JobError(msg)
    target.check(source)
    kinds = _affordable(target, source, settings)
    request = make_request(source, settings)
    target.begin(request)
    tasks = Tasks(spread or choose_spread(output.manifest), on_step)
    record = _build_kinds(target, source, kinds, settings, request, tasks)
    target.clean(record)
    return Built(record, target.address, finished_before=False)


def _affordable(target: Target, source: IndexSource, settings: Index) -> list[Kind]:
    """The kinds that fit the memory.

    Raises:
        RunError: none does.
    """
    limit = parse_bytes(settings.memory, _LEAST_BYTES) if settings.memory else default_bytes(share=_MEMORY_SHARE)
    kinds = target.kinds(source)
    needs = {kind.name: kind.bytes_per_vector * source.num_vectors for kind in kinds}
    affordable = [kind for kind in kinds if kind.name == EXACT or needs[kind.name] <= limit]
    if not affordable:
        name = min(needs, key=lambda kind: needs[kind])
        msg = (
            f"no index of {source.num_vectors:,} vectors fits into {data_size(limit)}: the smallest, {name}, needs "
            f"{data_size(needs[name])}. Raise --memory"
        )
        raise RunError(msg)
    return affordable


def _build_kinds(
    target: Target,
    source: IndexSource,
    kinds: Sequence[Kind],
    settings: Index,
    request: IndexRequest,
    tasks: Tasks,
) -> IndexRecord:
    """Build one kind after the other until one reaches the recall, and publish it.

    Raises:
        RunError: none does.
    """
    queries = [] if kinds[0].name == EXACT else _proof_queries(source, settings)
    proofs: list[Proof] = []
    measurements: list[Measurement] = []
    for kind in kinds:
        proofs = add_parts(target, kind, source, queries if not proofs else [], tasks) or proofs
        if kind.name == EXACT:
            return _publish(target, kind, source, request, {}, [], tasks.spread)
        with target.searcher(kind, source) as searcher:
            check_rows(searcher, source)
            tasks.on_step(f"{kind.name}: measure", 0, 1)
            measured, setting = prove(searcher, source, kind, proofs, settings.recall)
        measurements += measured
        if setting is not None:
            return _publish(target, kind, source, request, setting, measurements, tasks.spread)
        logger.warning("%s does not reach a recall@10 of %s", kind.name, settings.recall)
    raise RunError(_not_reached(target, measurements, settings))


def _proof_queries(source: IndexSource, settings: Index) -> list[ProofQueries]:
    """Sampled rows, and the user's queries."""
    num_rows = _PROOF_ROWS if source.kind == DENSE else _PROOF_LISTS
    positions = source.sample_positions(num_rows, seed=int(source.output.manifest.fingerprint[:8], 16))
    queries = [ProofQueries("rows", source.at(positions), positions)]
    if settings.queries:
        from varve.indexing.query_encoder import encode_queries  # noqa: PLC0415 (imports torch)
        from varve.indexing.query_file import read_queries  # noqa: PLC0415

        texts = read_queries(settings.queries)
        queries.append(ProofQueries(settings.queries, encode_queries(source.output, source.column, texts), None))
    return queries


def _publish(
    target: Target,
    kind: Kind,
    source: IndexSource,
    request: IndexRequest,
    setting: dict[str, int],
    measurements: Sequence[Measurement],
    spread: Spread,
) -> IndexRecord:
    record = IndexRecord(
        request=request,
        kind=kind.name,
        setting=setting,
        bytes_per_vector=round(kind.bytes_per_vector, 2),
        measurements=list(measurements),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=installed_versions(_LIBRARIES),
    )
    return target.publish(kind, source, record, spread)


def _not_reached(target: Target, measurements: Sequence[Measurement], settings: Index) -> str:
    best = max(measurements, key=lambda m: m.low)
    table = recall_table(measurements)
    return (
        f"no index reaches a recall@10 of {settings.recall}: the best, {best.kind}, has {best.recall['10']:.4f} "
        f"({best.low:.4f} to {best.high:.4f}).\n{table}Nothing is published at {target.address}. Lower --recall, or "
        "raise --memory"
    )
