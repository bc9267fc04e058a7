"""`python -m tests.fuzz`: changes what comes from outside at random, and looks for readers that do not refuse it well.

Prints the cases of each target by outcome, also if it is interrupted. Each finding is written to the folder as a case
when it is found, and belongs in `tests/fuzz/found/TARGET/` once it is fixed. Exit code 1 if there is a finding.
"""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.fuzz.campaign import fuzz
from tests.fuzz.case import Results

_MEMORY = Path("/dev/shm")  # a disk would take longer than most cases


def main() -> int:
    """Run the command; it leaves the imports of targets, which take long, to its child processes."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", nargs="+", default=[], metavar="NAME", help="default: all")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cases", type=int, default=10**9, help="of each target, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder of the cases")
    arguments = parser.parse_args()
    latest = Results()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def look(results: Results) -> None:
        nonlocal latest
        latest = results
        _save(results, arguments.findings)

    root = Path(tempfile.mkdtemp(prefix="varve-fuzz-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None))
    try:
        limits = {"cases": arguments.cases, "seconds": 60 * arguments.minutes}
        look(fuzz(arguments.target, root, seed=arguments.seed, look=look, **limits))
    finally:  # also if it is interrupted
        shutil.rmtree(root, ignore_errors=True)
        _print(latest)
    return 1 if latest.findings else 0


def _print(results: Results) -> None:
    for target, counts in results.counts.items():
        shown = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(counts.items()))
        rate = sum(counts.values()) / max(results.seconds.get(target, 0.0), 1e-9)
        memory = results.peak_mb.get(target, 0)
        sys.stdout.write(f"{target:<20} {shown}; {rate:.0f} per second; at most {memory} MB\n")
    for key, (details, case) in sorted(results.findings.items()):
        sys.stdout.write(f"\n== {key} ({len(case.content)} bytes)\n{details}\n")


def _save(results: Results, folder: Path) -> None:
    for key, (_, case) in results.findings.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', key)[:100]}.json").write_text(case.encode())


if __name__ == "__main__":
    sys.exit(main())
