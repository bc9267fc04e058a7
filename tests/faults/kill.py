"""Kill the driver at random moments, run the same command again each time, compare with an undisturbed run.

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


def command(source: Path, output: Path, rows_per_part: int) -> list[str]:
    job = ["--dataset", str(source), "--text", "text", "--model", str(model_folder()), "--output", str(output)]
    more = ["--max-tokens", "128", "--feature", "e=mean", "--feature", "c=cls@all", "--set"]
    return [sys.executable, "-m", "varve", "embed", *job, *more, f"output.rows_per_part={rows_per_part}"]


def run_to_the_end(argv: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(argv, check=True, capture_output=True, timeout=900)
    return time.monotonic() - began


def kill_after(argv: list[str], seconds: float) -> bool:
    """Run and kill; returns whether the run was still going."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)  # the driver alone: its workers must not harm the next run
        process.wait()
        return True
    return False


def tables(output: Path) -> dict[str, pa.Table]:
    return {path.name: pq.read_table(path) for path in sorted((output / "data").glob("*.parquet"))}


def compare(quiet: dict[str, pa.Table], disturbed: dict[str, pa.Table], rows: int) -> None:
    """
    Raises:
        AssertionError: a row is lost, doubled or different.
    """
    assert quiet.keys() == disturbed.keys()
    assert all(disturbed[name].equals(table) for name, table in quiet.items()), "a value differs from the quiet run"
    found = [
        pair
        for table in disturbed.values()
        for pair in zip(*table.select(["shard", "row"]).to_pydict().values(), strict=True)
    ]
    assert len(found) == len(set(found)) == rows


def disturb(folder: Path, *, kills: int, seed: int, rows: int, rows_per_part: int) -> str:
    """Compare a run killed `kills` times with an undisturbed one; returns one line of figures.

    Raises:
        AssertionError: a row is lost, doubled or different.
    """
    draw = random.Random(seed)
    write_source(folder / "docs", rows)
    whole_s = run_to_the_end(command(folder / "docs", folder / "quiet", rows_per_part))
    argv = command(folder / "docs", folder / "killed", rows_per_part)
    done, parts_seen = 0, []
    while done < kills:
        if not kill_after(argv, draw.uniform(0.1, 1.0) * whole_s):
            for path in (folder / "killed").rglob("*.*"):  # it got through: start over, until all kills are spent
                path.unlink()
            continue
        done += 1
        parts_seen.append(len(list((folder / "killed/data").glob("*.parquet"))))
    run_to_the_end(argv)
    compare(tables(folder / "quiet"), tables(folder / "killed"), rows)
    return (
        f"{done} kills, parts after each {parts_seen}: {rows} rows, each once, every value that of the undisturbed run"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--rows-per-part", type=int, default=40)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout.write(
            disturb(
                Path(folder),
                kills=chosen.kills,
                seed=chosen.seed,
                rows=chosen.rows,
                rows_per_part=chosen.rows_per_part,
            )
            + "\n"
        )
