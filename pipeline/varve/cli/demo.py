"""`varve demo`: embed docstrings of the installed Python, check the output, and search it.

Real texts and a real model without a network: see corpus.py.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from varve.cli.command import print_json, run, writable_folder
from varve.cli.corpus import docstrings, model_folder
from varve.cli.run_summary import summary
from varve.config.job import Job
from varve.errors import JobError, RunError

NUM_SHARDS = 4
MAX_ROWS = 3000
SEARCHES = (
    "split a string into words",
    "remove a directory and everything in it",
    "compute the arithmetic average of numbers",
)
_NUM_ANSWERS = 3
_DESCRIPTION = f"""Embed {MAX_ROWS:,} docstrings of the installed Python with all-MiniLM-L6-v2, check the output, and
search it. Needs no network."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("demo", _DESCRIPTION, _add_arguments, _demo, argv, uses_ray=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        default="demo-output",
        metavar="DIR",
        help="folder to write to; the output of an earlier demo is deleted (default: demo-output)",
    )


def _demo(arguments: argparse.Namespace) -> int:
    folder = writable_folder(arguments.output)
    model = model_folder()
    if folder.exists() and not (folder / "docstrings").is_dir():
        msg = f"--output: {folder} exists and is not the output of a demo. Choose another folder"
        raise JobError(msg)
    shutil.rmtree(folder, ignore_errors=True)
    num_rows = write_docstrings(folder / "docstrings")
    sys.stderr.write(f"{num_rows:,} docstrings in {NUM_SHARDS} Parquet shards: {folder / 'docstrings'}\n")
    job = make_job(folder, model)
    from varve.driver.embed import embed_in_own_process
    from varve.verification.verify import verify

    manifest = embed_in_own_process(job).manifest
    checks = verify(job.output.path)
    if failures := [failure for check in checks for failure in check.failures]:
        raise RunError(f"{job.output.path} is not verified:\n  " + "\n  ".join(failures))
    answers = search(folder / "features", model, SEARCHES)
    if arguments.json:
        print_json({**manifest.summary(), "verified": True, "searches": answers})
        return 0
    sys.stdout.write(summary(manifest))
    sys.stdout.write(f"Verified: {', '.join(check.name for check in checks)}\n")
    for query, nearest in answers.items():
        sys.stdout.write(f"\nSearch: {query}\n")
        sys.stdout.writelines(f"  {score:.2f}  {name}: {line}\n" for score, name, line in nearest)
    sys.stdout.write(_how_to_read(folder / "features"))
    return 0


def make_job(folder: Path, model: Path) -> Job:
    """Return the demo's job."""
    return Job.parse(
        {
            "source": {"dataset": str(folder / "docstrings"), "text": "docstring", "keep": ["name"]},
            "model": {"name": str(model), "max_tokens": 256},
            "features": {
                "embedding": {"pool": "mean", "normalize": True},
                "cls": {"pool": "cls", "layers": [0, 3, 6]},
            },
            "output": {"path": str(folder / "features")},
        }
    )


def write_docstrings(folder: Path, max_rows: int = MAX_ROWS) -> int:
    """Write docstrings as Parquet shards with the columns name and docstring; returns the number of rows."""
    names: dict[str, str] = {}  # docstring → name of its first use
    for name, text in docstrings():
        names.setdefault(text, name)
        if len(names) == max_rows:
            break
    folder.mkdir(parents=True)
    table = pa.table({"name": list(names.values()), "docstring": list(names)})
    for shard in range(NUM_SHARDS):
        rows = range(shard, len(table), NUM_SHARDS)
        pq.write_table(table.take(pa.array(rows)), folder / f"docstrings-{shard:02d}.parquet")
    return len(table)


def search(features: Path, model: Path, queries: Sequence[str]) -> dict[str, list[tuple[float, str, str]]]:
    """query → (cosine similarity, name, first line) of the nearest docstrings."""
    from varve.encoder.encoder import Encoder

    output = ds.dataset(features / "data").to_table(columns=["name", "embedding", "shard", "row"])
    vectors = np.stack(output["embedding"].to_numpy())
    encode = Encoder(str(model), {"embedding": "mean+normalize"}, device="cpu")
    scores = np.asarray(encode(queries)["embedding"]) @ vectors.T
    return {
        query: [
            (float(row[at]), *_source_row(features.parent, output, int(at))) for at in np.argsort(-row)[:_NUM_ANSWERS]
        ]
        for query, row in zip(queries, scores, strict=True)
    }


def _source_row(folder: Path, output: pa.Table, at: int) -> tuple[str, str]:
    """(name, first line of the docstring) of an output row, whose columns shard and row locate its text."""
    shard, row = output["shard"][at].as_py(), output["row"][at].as_py()
    source = pq.read_table(folder / "docstrings" / f"docstrings-{shard:02d}.parquet")
    return output["name"][at].as_py(), source["docstring"][row].as_py().splitlines()[0]


def _how_to_read(features: Path) -> str:
    parts = f"{features}/data/*.parquet"
    return f"""
The output is in {features}. To read it:
  duckdb    FROM '{parts}'
  polars    pl.read_parquet("{parts}")
  datasets  load_dataset("parquet", data_files="{parts}")
The run is described in {features}/_varve/manifest.json
"""
