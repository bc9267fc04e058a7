"""Take the machine's memory away in the midst of a run, so that Ray kills its workers; compare with a quiet run.

python -m tests.faults.memory --rows 1200

Ray's memory monitor is told to act a little above what is in use now. A balloon of this process then passes that for
a while, again and again, until it has cost the run some workers.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.manifest import read_manifest
from pipeline.storage.objects import Storage
from tests.faults.kill import command, compare, run_to_the_end, tables, write_source

ROOM_BYTES = 3 << 30  # above what is in use: enough for a run
BALLOON_BYTES = 4 << 30
HELD_S, PAUSE_S = 4.0, 12.0


def in_use() -> tuple[int, int]:
    """(bytes in use, bytes of the machine)."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    whole, free = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return whole - free, whole


def inflate() -> None:
    """Hold so much memory for so long."""
    balloon = bytearray(BALLOON_BYTES)
    balloon[::4096] = b"\1" * len(balloon[::4096])
    time.sleep(HELD_S)


def starve(folder: Path, rows: int, balloons: int) -> str:
    """Returns one line of figures.

    Raises:
        AssertionError: a row is lost, doubled or different, or the run gave up.
    """
    write_source(folder / "docs", rows)
    run_to_the_end(command(folder / "docs", folder / "quiet", 40))
    used, whole = in_use()
    threshold = (used + ROOM_BYTES) / whole
    monitored = os.environ | {
        "RAY_memory_usage_threshold": f"{threshold:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    output = folder / "starved"
    process = subprocess.Popen(
        command(folder / "docs", output, 40),
        env=monitored,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    made = 0
    while process.poll() is None:
        if made < balloons and list(output.glob("data/*.parquet")):
            inflate()
            made += 1
        time.sleep(PAUSE_S)
    told = process.communicate()[1]
    assert process.returncode == 0, told
    compare(tables(folder / "quiet"), tables(output), rows)
    manifest = read_manifest(Storage(str(output)))
    assert manifest is not None
    return (
        f"{made} balloons above {threshold:.0%} of memory, {manifest.counts['lost']} parts begun again: {rows} rows, "
        "each once, every value that of the quiet run"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--balloons", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.stdout.write(starve(Path(name), chosen.rows, chosen.balloons) + "\n")
