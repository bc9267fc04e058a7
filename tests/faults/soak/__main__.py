"""Run one job with many small parts and one with few large parts for hours, and measure their processes.

python -m tests.faults.soak --hours 2 --plots FOLDER

The small parts go to an S3 server, the large ones to a local folder. Prints for each role its largest process: memory,
file descriptors and threads, in the second and in the last quarter of the time. Exits with 1 if one of them grew by
more than a tenth, if a job ended before, or if it left a temporary file. SIGINT and SIGTERM end it early.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from threading import Event

from tests.faults.soak.plots import write_plots
from tests.faults.soak.samples import Samples
from tests.faults.soak.soaked_job import SIZES, SoakedJob
from tests.servers.seaweed import seaweed_server
from varve.output import manifest
from varve.storage.object_store import Storage

_MAX_GROWTH = 1.10
_UNITS = {"memory_mb": 20, "descriptors": 5, "threads": 3}  # growth by less is noise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--every", type=float, default=30.0, help="seconds between samples")
    parser.add_argument("--plots", type=Path, help="folder for plots (SVG) and samples (JSON)")
    arguments = parser.parse_args()
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix="soak-source-") as name, ExitStack() as running:
        folder = Path(name)
        (folder / "server").mkdir()
        server = running.enter_context(seaweed_server(folder / "server"))
        os.environ.update(server.environment(), RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1")
        outputs = dict(zip(SIZES, (server.new_folder(), str(folder / "large-output")), strict=True))
        jobs = {
            name: SoakedJob(folder / name.replace(" ", "-"), outputs[name], size, {}) for name, size in SIZES.items()
        }
        for job in jobs.values():
            running.callback(job.process.kill)
        samples = {name: Samples(job.process.pid) for name, job in jobs.items()}
        until = time.monotonic() + arguments.hours * 3600
        while time.monotonic() < until and not stopped.wait(arguments.every):
            _measure(samples, arguments.plots)
        problems = [problem for name, job in jobs.items() for problem in _end(name, job, samples[name])]
    for problem in problems:
        _say(f"FAILED: {problem}")
    return 1 if problems else 0


def _measure(samples: dict[str, Samples], plots: Path | None) -> None:
    for name, one in samples.items():
        one.measure()
        if plots and one.by_role:
            write_plots(plots, name, one.by_role)
            values = {role: [asdict(sample) for sample in each] for role, each in one.by_role.items()}
            (plots / f"{name.replace(' ', '-')}.json").write_text(json.dumps(values))


def _end(name: str, job: SoakedJob, samples: Samples) -> list[str]:
    """Stop a job and print its figures; returns what is wrong."""
    try:
        left = job.stop()
    except AssertionError as e:
        return [f"{name}: {e}"]
    parts = sum(map(len, manifest.committed(Storage(job.output)).values()))
    _say(f"\n{name}: {parts:,} parts committed, {len(left)} temporary files left")
    _say("| role | figure | second quarter | last quarter |\n| --- | --- | --- | --- |")
    problems = [f"{name}: temporary files are left: {left[:5]}"] if left else []
    for role, figure, first, last in samples.growth():
        _say(f"| {role} | {figure} | {first:,.0f} | {last:,.0f} |")
        if last > first * _MAX_GROWTH and last - first > _UNITS[figure]:
            problems.append(f"{name}: {role}: {figure} grew from {first:,.0f} to {last:,.0f}")
    return problems


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
