"""What one driver costs per part, and how many parts each component takes until it exceeds its bound.

Knows nothing of failures or of time. Costs are figures of `python -m tests.bench.scale` (infra/decisions/0044).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from varve.output.json_text import MAX_BYTES
from varve.planning.part_sizing import LARGEST_PART_BYTES, MANY_PARTS, PART_BYTES, part_bytes

MEMORY_BYTES = 64e9  # of the machine of the driver
HOUR_S = 3600.0
S3_PUTS_PER_S = (
    3500.0  # per partitioned prefix: docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html
)
PUTS_PER_PART = 1.0  # a conditional one
CALLS_PER_PART = 7.0  # of the counters, besides those of blocks
# Assumed, not measured: what a node reads from a store and hashes or writes.
NODE_BYTES_PER_S = 1e9
NODES = 128  # of 1,024 GPUs
_BY_TASKS = "several files of lists, merged and hashed by tasks"
_LARGER = "larger parts (`output.rows_per_part`)"


@dataclass(frozen=True)
class CommitCosts:
    """What follows the last part, for one destination."""

    seconds: float  # of one process, per part
    memory_bytes: float  # of the driver, per part
    metadata_bytes: float  # of the table or the index, per part
    row_s: float = 0.0  # of one process, per row: index files that it writes and hashes
    passes: float = 0.0  # how often the bytes of all parts are read or written again, in tasks on all nodes


@dataclass(frozen=True)
class Costs:
    """What one part costs."""

    driver_s: float  # CPU of the driver
    counter_s: float  # CPU of the counters, per call
    list_s: float  # at a resume
    run_memory_bytes: float  # of the driver while it runs
    base_memory_bytes: float  # of a driver without parts
    manifest_bytes: float
    manifest_memory_bytes: float  # to read the manifest
    commits: Mapping[str, CommitCosts]

    def calls(self, blocks: float) -> float:
        """Calls of the counters for a part of so many blocks."""
        return CALLS_PER_PART + max(1.0, blocks)


@dataclass(frozen=True)
class Workload:
    """What is encoded.

    Attributes:
        row_bytes: of a row of the output.
        rows_per_gpu_s: that a GPU encodes.
        block_rows: rows of a block, each of which is a call of the counters.
    """

    row_bytes: float = 3072.0
    rows_per_gpu_s: float = 4000.0
    block_rows: int = 8192

    def rows_per_part(self, rows: float) -> float:
        """As planning chooses it for a source of so many rows."""
        return part_bytes(rows * self.row_bytes) / self.row_bytes

    @property
    def largest_part(self) -> float:
        """Rows of the largest part that planning chooses."""
        return LARGEST_PART_BYTES / self.row_bytes

    def rows_of(self, parts: float) -> float:
        """Rows of a run of so many parts."""
        grown = parts * self.largest_part
        return grown if parts > MANY_PARTS else parts * PART_BYTES / self.row_bytes


@dataclass(frozen=True)
class Limit:
    """One component: up to where it holds.

    Attributes:
        what: component and its bound.
        cost: of a part, as it is shown.
        measured: by what.
        parts: at which the bound is reached, if it depends on their number.
        gpus: at which the bound is reached with the largest parts, if it depends on their rate.
        remedy: what it would take.
        rows: at which the bound is reached, if it depends on their number alone.
    """

    what: str
    cost: str
    measured: str
    parts: float | None
    gpus: float | None
    remedy: str
    rows: float | None = None


def limits(costs: Costs, workload: Workload) -> Iterator[Limit]:
    """The limits of all components."""
    part_s, rate = workload.largest_part / workload.rows_per_gpu_s, "`tests.bench.scale`"
    calls_s = costs.counter_s * costs.calls(workload.largest_part / workload.block_rows)
    several = "several drivers, each with some of the shards"
    yield Limit("driver busy 100 %", _ms(costs.driver_s), rate, None, part_s / costs.driver_s, several)
    yield Limit("counters busy 100 %", _ms(calls_s), rate, None, part_s / calls_s, "several blocks in one call")
    puts = S3_PUTS_PER_S / PUTS_PER_PART * part_s
    yield Limit("3,500 PUTs/s of an S3 prefix", "1 request", "documented by AWS", None, puts, "several prefixes")
    free, pieces = MEMORY_BYTES - costs.base_memory_bytes, "a manifest in pieces, read one by one"
    yield _size("driver's memory 64 GB", costs.run_memory_bytes, free, rate, _LARGER)
    yield _size("manifest 1 GiB, the most that is read", costs.manifest_bytes, MAX_BYTES, rate, pieces)
    yield _size("memory to read the manifest 64 GB", costs.manifest_memory_bytes, free, rate, pieces)
    yield _time("listing of a resume 1 h", costs.list_s, rate)
    for name, commit in costs.commits.items():
        yield _time(f"commit 1 h, {name}", commit.seconds, rate)
        yield _size(f"commit's memory 64 GB, {name}", commit.memory_bytes, free, rate, _LARGER)
        if commit.passes:
            yield _reading(name, commit.passes)
        if commit.row_s:
            what, cost = f"files of the index in one process 1 h, {name}", f"{commit.row_s * 1e6:.1f} µs a row"
            yield Limit(what, cost, "decision 30; 1 GB/s of SHA-256", None, None, _BY_TASKS, rows=HOUR_S / commit.row_s)


def _reading(name: str, passes: float) -> Limit:
    parts = HOUR_S * NODES * NODE_BYTES_PER_S / passes / LARGEST_PART_BYTES
    what, cost = f"parts read again for 1 h on {NODES} nodes, {name}", f"{passes:.0f} times 512 MB"
    return Limit(what, cost, "assumed: 1 GB/s of a node", parts, None, "hashes from the store; a sample of the parts")


def _time(what: str, cost_s: float, measured: str) -> Limit:
    return Limit(what, _ms(cost_s), measured, HOUR_S / cost_s, None, _LARGER)


def _size(what: str, cost_bytes: float, bound: float, measured: str, remedy: str) -> Limit:
    return Limit(what, f"{cost_bytes:,.0f} bytes", measured, bound / cost_bytes, None, remedy)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


# infra/decisions/0044 has the measurement of each. Parts travel alone, as those of 16 kB of text and more do.
MEASURED = Costs(
    driver_s=0.0172,
    counter_s=0.00075,
    list_s=13e-6,
    run_memory_bytes=130.0,
    base_memory_bytes=0.55e9,
    manifest_bytes=522.0,
    manifest_memory_bytes=2300.0,
    commits={
        "folder": CommitCosts(seconds=0.0006, memory_bytes=2460.0, metadata_bytes=522.0),
        "iceberg": CommitCosts(seconds=0.0010, memory_bytes=5200.0, metadata_bytes=189.0, passes=1.0),
        "delta": CommitCosts(seconds=0.0010, memory_bytes=5700.0, metadata_bytes=387.0, passes=1.0),
        "lance": CommitCosts(seconds=0.0010, memory_bytes=2460.0, metadata_bytes=21.0, passes=4.0),
        "npy": CommitCosts(seconds=0.0002, memory_bytes=2460.0, metadata_bytes=153.0, passes=3.0),
        "faiss": CommitCosts(seconds=0.0005, memory_bytes=2460.0, metadata_bytes=153.0, row_s=2.2e-6, passes=1.0),
    },
)
