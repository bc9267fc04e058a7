"""Cost of a part without its encoding, in each destination, with a driver that is killed on the way.

python -m tests.bench.scale --parts 100000 --shards 1000 --into folder iceberg delta lance npy faiss --kills 2

Prints a table with a row for each destination: the driver's CPU per part in all attempts, and while parts were written,
and that of the actor that counts what workers report; the driver's memory when a tenth, half and all of the parts were
there; the listings of each attempt; the commit, which is what comes after the last part (listing, footers, proof of
coverage, canary, commit of the table or files of the index, manifest), and its peak memory. tests/bench/simulate.py
needs these figures. With --written most parts are written without a driver, as an interrupted run would have left them.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.scale.destinations import DESTINATIONS
from tests.bench.scale.driver_watch import Attempt, idle_driver, run_with_kills
from tests.bench.scale.written_parts import write_ahead
from tests.faults.chaos.leftovers import adopt_orphans

_TITLES = (
    "into", "parts", "attempts", "wall s", "driver's CPU ms per part", "while writing", "counters' CPU ms",
    "MB at a tenth, half, all",
    "peak MB", "listings s", "commit s", "of it publish s", "commit's CPU s", "commit's peak MB", "manifest read s, MB",
    "metadata bytes per part",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """What was measured of one destination."""

    into: str
    parts: int
    attempts: list[Attempt]
    seconds: dict[str, float]
    metadata: dict[str, int]
    manifest: tuple[float, float]  # to read it: seconds, MB of memory

    def row(self) -> list[str]:
        last, parts = self.attempts[-1], self.parts
        cpu_s = sum(attempt.cpu_s for attempt in self.attempts)
        written = [attempt.writing for attempt in self.attempts]
        num_written = max(1, sum(count for count, _, _ in written))
        writing_ms = 1000 * sum(cpu for _, cpu, _ in written) / num_written
        counters_ms = 1000 * sum(cpu for _, _, cpu in written) / num_written
        all_parts_s = last.all_parts_s if last.all_parts_s is not None else last.ended_s
        at_end = [each.cpu_s for each in last.samples if each.at_s >= all_parts_s] or [last.cpu_s]
        return [
            self.into,
            f"{parts:,}",
            str(len(self.attempts)),
            f"{last.ended_s:,.0f}",
            f"{1000 * cpu_s / parts:.2f}",
            f"{writing_ms:.2f}",
            f"{counters_ms:.2f}",
            ", ".join(f"{self._memory_mb(share):,.0f}" for share in (0.1, 0.5, 1.0)),
            f"{max(attempt.peak_mb for attempt in self.attempts):,.0f}",
            "; ".join(", ".join(f"{each:.2f}" for each in attempt.listings_s) for attempt in self.attempts),
            f"{last.ended_s - all_parts_s:.1f}",
            f"{self.seconds.get('publish', 0.0):.1f}",
            f"{last.cpu_s - at_end[0]:.1f}",
            f"{last.end_peak_mb:,.0f}",
            "{:.1f}, {:,.0f}".format(*self.manifest),
            ", ".join(f"{name} {size / parts:,.0f}" for name, size in self.metadata.items()),
        ]

    def _memory_mb(self, share: float) -> float:
        """The driver's memory when this share of the parts was there."""
        samples = [each for attempt in self.attempts for each in attempt.samples]
        return next((each.memory_mb for each in samples if each.parts >= share * self.parts), samples[-1].memory_mb)


def measure(into: str, arguments: argparse.Namespace, draw: random.Random) -> Figures:
    """Run the job of one destination in a new folder, which is removed afterwards."""
    parts, shards = arguments.parts, arguments.shards
    written = arguments.written if DESTINATIONS[into].can_be_written_ahead else 0.0
    destination, folder = DESTINATIONS[into], Path(tempfile.mkdtemp(prefix=f"scale-{into}-", dir=arguments.root))
    try:
        command = destination.prepare(folder, parts, shards)
        if written:
            write_ahead(folder / "job.yaml", written)
        total = destination.num_files(parts, shards)

        found: list[Path] = []

        def count() -> int:
            if not found and (there := destination.parts_folder(folder)):
                found.append(there)
            return sum(1 for _ in os.scandir(found[0])) if found else 0

        shares = sorted(draw.uniform(0.1, 0.9) for _ in range(arguments.kills))
        kill_at = [int((written + (1 - written) * share) * total) for share in shares]
        attempts = run_with_kills(idle_driver(*command, grouped=arguments.grouped), count, total, kill_at, folder)
        destination.check(folder, parts, shards)
        manifest = read_again(destination.manifest_folder(folder))
        return Figures(into, total, attempts, destination.seconds(folder), destination.metadata(folder), manifest)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_READ = """
import resource, sys, time
from varve.indexing.index_folder import IndexFolder
from varve.output.manifest import read_manifest
from varve.storage.object_store import Storage
before, started, storage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), Storage(sys.argv[1])
assert (IndexFolder(storage).published() if (sys.argv[2] == "index") else read_manifest(storage))
seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, (peak - before) / 1000)
"""


def read_again(folder: Path) -> tuple[float, float]:
    """Seconds and MB of memory to read the manifest of an output or an index, in a process of its own."""
    kind = "index" if folder.name == "index" else "run"
    command = [sys.executable, "-c", _READ, str(folder), kind]
    seconds, memory_mb = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(seconds), float(memory_mb)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tests.bench.scale", description=__doc__)
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--into", nargs="+", choices=list(DESTINATIONS), default=list(DESTINATIONS))
    parser.add_argument("--kills", type=int, default=2, help="of the driver, at random shares of the parts")
    parser.add_argument(
        "--grouped", action="store_true", help="several parts in a block, as Varve does with small ones"
    )
    parser.add_argument(
        "--written", type=float, default=0.0, help="share of the parts that are written without a driver"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--root", type=Path, help="folder for sources and outputs")
    parser.add_argument("--samples", type=Path, help="file that takes all samples, as JSON Lines")
    arguments = parser.parse_args(argv)
    adopt_orphans()
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.stdout.write(f"| {' | '.join(_TITLES)} |\n|{' --- |' * len(_TITLES)}\n")
    draw = random.Random(arguments.seed)
    for into in arguments.into:
        figures = measure(into, arguments, draw)
        sys.stdout.write(f"| {' | '.join(figures.row())} |\n")
        sys.stdout.flush()
        if arguments.samples:
            with arguments.samples.open("a") as file:
                for number, attempt in enumerate(figures.attempts):
                    shown = [(round(s.at_s, 1), s.cpu_s, round(s.memory_mb), s.parts) for s in attempt.samples]
                    line = {"into": into, "attempt": number, "leftover_s": attempt.leftover_s, "samples": shown}
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
