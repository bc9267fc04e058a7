"""`varve demo`: embed docstrings of the installed Python, check the output, index it, search the index, write a report.

Real texts and a real model without a network: see corpus.py.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from varve.cli.command import print_json, run, writable_folder
from varve.cli.corpus import docstrings, model_folder
from varve.cli.index_summary import index_json, index_summary
from varve.cli.report_page import write_page
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
INDEX_KIND = "HNSW32,SQ8"  # `auto` compares all vectors of so few rows
_DESCRIPTION = f"""Embed {MAX_ROWS:,} docstrings of the installed Python with all-MiniLM-L6-v2, check the output, build
an index, prove its recall, search it, and write a report of all of it. Needs no network."""


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
    from varve.indexing.index import index

    to = f"faiss:{folder / 'index'}"
    record = index(job.output.path, to, feature="embedding", kind=INDEX_KIND, keep=["name"])
    answers = answer(folder, SEARCHES)
    report = write_page(job.output.path, color="package").address
    if arguments.json:
        results = {"verified": True, "index": index_json(record), "searches": answers, "report": report}
        print_json({**manifest.summary(), **results})
        return 0
    sys.stdout.write(summary(manifest))
    sys.stdout.write(f"Verified: {', '.join(check.name for check in checks)}\n\n")
    sys.stdout.write(index_summary(record, str(folder / "index")))
    for query, nearest in answers.items():
        sys.stdout.write(f"\nSearch: {query}\n")
        sys.stdout.writelines(f"  {score:.2f}  {name}: {line}\n" for score, name, line in nearest)
    sys.stdout.write(_how_to_read(folder))
    sys.stdout.write(f"Report: {report}\n")
    return 0


def make_job(folder: Path, model: Path) -> Job:
    """Return the demo's job."""
    return Job.parse(
        {
            "source": {"dataset": str(folder / "docstrings"), "text": "docstring", "keep": ["name", "package"]},
            "model": {"name": str(model), "max_tokens": 256},
            "features": {
                "embedding": {"pool": "mean", "normalize": True},
                "cls": {"pool": "cls", "layers": [0, 3, 6]},
            },
            "output": {"path": str(folder / "features")},
        }
    )


def write_docstrings(folder: Path, max_rows: int = MAX_ROWS) -> int:
    """Write docstrings as Parquet shards with the columns name, package and docstring; returns the number of rows."""
    names: dict[str, str] = {}  # docstring → name of its first use
    for name, text in docstrings():
        names.setdefault(text, name)
        if len(names) == max_rows:
            break
    folder.mkdir(parents=True)
    packages = [name.partition(".")[0] for name in names.values()]
    table = pa.table({"name": list(names.values()), "package": packages, "docstring": list(names)})
    for shard in range(NUM_SHARDS):
        rows = range(shard, len(table), NUM_SHARDS)
        pq.write_table(table.take(pa.array(rows)), folder / f"docstrings-{shard:02d}.parquet")
    return len(table)


def answer(folder: Path, queries: Sequence[str]) -> dict[str, list[tuple[float, str, str]]]:
    """query → (score, name, first line) of the nearest docstrings, from the index in the folder of a demo."""
    from varve.retrieval.search import search

    found = search(str(folder / "index"), queries, _NUM_ANSWERS).to_pylist()
    return {
        query: [
            (row["score"], row["name"], _first_line(folder, row["shard"], row["row"]))
            for row in found
            if row["query"] == number
        ]
        for number, query in enumerate(queries)
    }


def _first_line(folder: Path, shard: int, row: int) -> str:
    """The first line of a docstring: shard and row locate its text in the source."""
    source = pq.read_table(folder / "docstrings" / f"docstrings-{shard:02d}.parquet")
    return source["docstring"][row].as_py().splitlines()[0]


def _how_to_read(folder: Path) -> str:
    parts = f"{folder}/features/data/*.parquet"
    return f"""
To search again:
  varve search {folder}/index "read a file line by line"
To read the output:
  duckdb    FROM '{parts}'
  polars    pl.read_parquet("{parts}")
  datasets  load_dataset("parquet", data_files="{parts}")
  faiss     faiss.read_index("{folder}/index/index.faiss")
The run is described in {folder}/features/_varve/manifest.json, the index in {folder}/index/_varve/manifest.json
"""
