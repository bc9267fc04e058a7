"""A job over docstrings with MiniLM: its source, its command, its parts, and their comparison with another run's."""

import subprocess
import sys
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
