"""Fill the machine's memory during a run, so that Ray kills its workers; compare with an undisturbed run.

python -m tests.faults.memory --balloons 4

The threshold of Ray's memory monitor is set a little above the present use. This process then exceeds it repeatedly
with a large buffer (a balloon), and the monitor kills what it selects: replicas, the counters, Ray's own actors.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.chaos.ray_processes import working
from tests.faults.docstring_job import command, compare, run_to_completion, tables, write_source
from tests.servers.processes import descendants
from varve.output.manifest import read_manifest
from varve.storage.object_store import Storage

ROWS_PER_PART = 40
ROOM_BYTES = 3 << 30  # of the threshold above the present use: enough for a run
BALLOON_BYTES = 6 << 30
HELD_S, PAUSE_S = 5.0, 6.0


def starve(folder: Path, rows: int, balloons: int) -> str:
    """Compare a run whose workers are killed with an undisturbed one; returns one line of figures.

    Raises:
        AssertionError: a row is missing, repeated or different, or the run failed.
    """
    write_source(folder / "docs", rows)
    run_to_completion(command(folder / "docs", folder / "undisturbed", ROWS_PER_PART))
    output = folder / "starved"
    used_bytes, whole_bytes = in_use()
    threshold = (used_bytes + ROOM_BYTES) / whole_bytes
    monitor = {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    with (folder / "driver.log").open("w+") as log:
        argv = command(folder / "docs", output, ROWS_PER_PART)
        process = subprocess.Popen(argv, env=os.environ | monitor, stdout=log, stderr=log)
        killed = fill_memory(process, output, balloons)
        log.seek(0)
        assert process.returncode == 0, log.read()
    compare(tables(folder / "undisturbed"), tables(output), rows)
    assert read_manifest(Storage(str(output))) is not None
    return (
        f"{balloons} balloons above {threshold:.0%} of memory, {killed.total()} workers killed "
        f"({', '.join(f'{count} {name}' for name, count in killed.most_common())}): {rows} rows, each once, all "
        "values equal to the undisturbed run"
    )


def in_use() -> tuple[int, int]:
    """(bytes in use, bytes of the machine)."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    whole, free = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return whole - free, whole


def fill_memory(process: subprocess.Popen, output: Path, balloons: int) -> Counter[str]:
    """Inflate balloons as soon as the run has parts, until it ends; returns name → workers killed."""
    killed: Counter[str] = Counter()
    while process.poll() is None:
        if balloons and list(output.glob("data/*.parquet")):
            killed.update(inflate())
            balloons -= 1
        time.sleep(PAUSE_S)
    assert not balloons, f"the run ended with {balloons} balloon(s) left: use more rows"
    return killed


def inflate() -> list[str]:
    """Hold BALLOON_BYTES for HELD_S; returns the names of the workers that ended meanwhile."""
    previous = {pid: title for pid, title in descendants().items() if pid in working()}
    balloon = bytearray(BALLOON_BYTES)
    balloon[::4096] = b"\1" * len(balloon[::4096])
    time.sleep(HELD_S)
    return [previous[pid].split(b"\0")[0].decode().partition(".")[0] for pid in previous.keys() - set(working())]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--balloons", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.stdout.write(starve(Path(name), arguments.rows, arguments.balloons) + "\n")
