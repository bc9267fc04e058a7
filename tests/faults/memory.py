"""Take the machine's memory away in the midst of a run, so that Ray kills its workers; compare with a quiet run.

python -m tests.faults.memory --balloons 4

Ray's memory monitor is told to act a little above what is in use now. A balloon of this process passes that for a
while, again and again, and the monitor ends whatever it finds: replicas, the tally, Ray's own actors.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.chaos import working
from tests.faults.kill import command, compare, run_to_the_end, tables, write_source
from tests.servers.processes import descendants
from varve.output.manifest import read_manifest
from varve.storage.object_store import Storage

ROWS_PER_PART = 40
ROOM_BYTES = 3 << 30  # above what is in use: enough for a run
BALLOON_BYTES = 6 << 30
HELD_S, PAUSE_S = 5.0, 6.0


def starve(folder: Path, rows: int, balloons: int) -> str:
    """Returns one line of figures.

    Raises:
        AssertionError: a row is lost, doubled or different, or the run gave up.
    """
    write_source(folder / "docs", rows)
    run_to_the_end(command(folder / "docs", folder / "quiet", ROWS_PER_PART))
    output = folder / "starved"
    used_bytes, whole_bytes = in_use()
    threshold = (used_bytes + ROOM_BYTES) / whole_bytes
    monitor = {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    with (folder / "driver.log").open("w+") as log:
        argv = command(folder / "docs", output, ROWS_PER_PART)
        process = subprocess.Popen(argv, env=os.environ | monitor, stdout=log, stderr=log)
        ended = starved(process, output, balloons)
        log.seek(0)
        assert process.returncode == 0, log.read()
    compare(tables(folder / "quiet"), tables(output), rows)
    assert read_manifest(Storage(str(output))) is not None
    return (
        f"{balloons} balloons above {threshold:.0%} of memory, {ended.total()} workers ended "
        f"({', '.join(f'{count} {name}' for name, count in ended.most_common())}): {rows} rows, each once, every value "
        "that of the quiet run"
    )


def in_use() -> tuple[int, int]:
    """(bytes in use, bytes of the machine)."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    whole, free = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    return whole - free, whole


def starved(process: subprocess.Popen, output: Path, balloons: int) -> Counter[str]:
    """Take memory away as soon as there are parts, until the run ends; name → workers that were ended meanwhile."""
    ended: Counter[str] = Counter()
    while process.poll() is None:
        if balloons and list(output.glob("data/*.parquet")):
            ended.update(inflate())
            balloons -= 1
        time.sleep(PAUSE_S)
    assert not balloons, f"the run was over {balloons} balloon(s) too early: take more rows"
    return ended


def inflate() -> list[str]:
    """Hold so much memory for so long; what those were called that ended meanwhile."""
    before = {pid: title for pid, title in descendants().items() if pid in working()}
    balloon = bytearray(BALLOON_BYTES)
    balloon[::4096] = b"\1" * len(balloon[::4096])
    time.sleep(HELD_S)
    return [before[pid].split(b"\0")[0].decode().partition(".")[0] for pid in before.keys() - set(working())]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--balloons", type=int, default=4)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.stdout.write(starve(Path(name), chosen.rows, chosen.balloons) + "\n")
