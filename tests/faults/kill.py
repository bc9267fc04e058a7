"""Kill the driver at random times, repeat the command after each kill, and compare with an undisturbed run.

python -m tests.faults.kill --kills 10 --seed 1
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from varve.cli.corpus import docstrings, model_folder

SHARDS = 4


def write_source(folder: Path, rows: int) -> None:
    folder.mkdir(parents=True)
    texts = [text for _, text in islice(docstrings(), rows)]
    for shard in range(SHARDS):
        pq.write_table(pa.table({"text": texts[shard::SHARDS]}), folder / f"{shard}.parquet")


def command(source: Path, output: Path | str, rows_per_part: int, *settings: str) -> list[str]:
    job = ["--dataset", str(source), "--text", "text", "--model", str(model_folder()), "--output", str(output)]
    job += ["--max-tokens", "128", "--feature", "e=mean", "--feature", "c=cls@all"]
    job += [f"--set={setting}" for setting in (f"output.rows_per_part={rows_per_part}", *settings)]
    return [sys.executable, "-m", "varve", "embed", *job]


def run_to_completion(argv: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(argv, check=True, capture_output=True, timeout=900)
    return time.monotonic() - started


def kill_after(argv: list[str], seconds: float) -> bool:
    """Run a command and kill it after some seconds; returns False if it completed before."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)  # only the driver: its workers must not disturb the next run
        process.wait()
        return True
    return False


def tables(output: Path) -> dict[str, pa.Table]:
    return {path.name: pq.read_table(path) for path in sorted((output / "data").glob("*.parquet"))}


def compare(expected: dict[str, pa.Table], disturbed: dict[str, pa.Table], rows: int) -> None:
    """Compare the parts of a disturbed run with those of an undisturbed one.

    Raises:
        AssertionError: a row is missing, repeated or different.
    """
    assert disturbed.keys() == expected.keys(), sorted(disturbed.keys() ^ expected.keys())
    for name, part in expected.items():
        assert disturbed[name].equals(part), f"{name} differs from the undisturbed run"
    parts = disturbed.values()
    keys = [key for part in parts for key in zip(part["shard"].to_pylist(), part["row"].to_pylist(), strict=True)]
    assert len(keys) == len(set(keys)) == rows


def disturb(folder: Path, *, kills: int, seed: int, rows: int, rows_per_part: int) -> str:
    """Compare a run killed `kills` times with an undisturbed one; returns one line of figures.

    Raises:
        AssertionError: a row is missing, repeated or different.
    """
    generator = random.Random(seed)
    write_source(folder / "docs", rows)
    whole_s = run_to_completion(command(folder / "docs", folder / "undisturbed", rows_per_part))
    argv = command(folder / "docs", folder / "killed", rows_per_part)
    done, parts_after = 0, []
    while done < kills:
        if not kill_after(argv, generator.uniform(0.1, 1.0) * whole_s):
            for path in (folder / "killed").rglob("*.*"):  # completed before the kill: start over
                path.unlink()
            continue
        done += 1
        parts_after.append(len(list((folder / "killed/data").glob("*.parquet"))))
    run_to_completion(argv)
    compare(tables(folder / "undisturbed"), tables(folder / "killed"), rows)
    return f"{done} kills, parts after each: {parts_after}. {rows} rows, each once, all equal to the undisturbed run"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--rows-per-part", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(
            disturb(
                Path(folder),
                kills=arguments.kills,
                seed=arguments.seed,
                rows=arguments.rows,
                rows_per_part=arguments.rows_per_part,
            )
            + "\n"
        )
