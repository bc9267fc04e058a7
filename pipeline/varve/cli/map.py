"""`varve map PATH`: place all rows of an output in two dimensions, and open them in embedding-atlas."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from varve.cli.command import print_json, run, show_progress
from varve.errors import JobError, RunError

if TYPE_CHECKING:
    from varve.exploration.map.make_map import MapRecord

_DESCRIPTION = """Project a feature of all rows of a finished output to two dimensions, and list the neighbours of each
row. The files are written next to the parts, in PATH/maps/NAME; an interrupted map is continued. UMAP is fitted on a
sample, and the other rows are placed by their nearest rows of the sample."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("map", _DESCRIPTION, _add_arguments, _map, argv, resumable=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", help="output of a finished run")
    add("--feature", metavar="NAME", help="feature of one vector per row (default: the only one)")
    add("--color", metavar="COLUMN", help="kept column that is copied to the map")
    add("--text", action="store_true", help="copy the text columns, which the run must have kept")
    add("--method", default="auto", metavar="NAME", help="umap, pca or auto: umap if umap-learn is installed")
    add("--neighbours", type=int, default=15, metavar="K", help="neighbours of each row (default: 15)")
    add("--seed", type=int, default=0, metavar="N", help="of the sample and the layout (default: 0)")
    add("--sample", type=int, default=20_000, metavar="N", help="rows that the layout is fitted on (default: 20000)")
    add("--name", metavar="NAME", help="of the map (default: that of the feature)")
    add("--open", action="store_true", help="open the map in embedding-atlas, on this machine only, until Ctrl-C")


def _map(arguments: argparse.Namespace) -> int:
    from varve.exploration.map.make_map import make_map

    if arguments.open:
        _check_viewer(arguments.path)
    try:
        record = make_map(
            arguments.path, feature=arguments.feature, name=arguments.name, color=arguments.color,
            method=arguments.method, neighbours=arguments.neighbours, seed=arguments.seed,
            sample_rows=arguments.sample, text=arguments.text,
            on_part=lambda written, parts: show_progress(f"map: {written:,} of {parts:,} parts"),
        )  # fmt: skip
    finally:
        show_progress("")
    commands = viewing_commands(record)
    if arguments.json:
        print_json({"path": record.folder, **record.content, "commands": commands})
    else:
        sys.stdout.write(_report(record, commands))
    return _open(record) if arguments.open else 0


def viewing_commands(record: "MapRecord") -> dict[str, str]:
    """Program → the command that opens a map in it."""
    files = f"{record.folder}/*.parquet"
    quoted = files.replace("'", "''")
    texts = _text_option(record)
    return {
        "embedding-atlas": f"embedding-atlas {shlex.quote(record.folder)}/*.parquet {shlex.join(_options(texts))}",
        "duckdb": f"SELECT x, y FROM read_parquet('{quoted}')",  # noqa: S608 (printed, not run)
        "polars": f"polars.scan_parquet({files!a})",
    }  # fmt: skip


def _report(record: "MapRecord", commands: dict[str, str]) -> str:
    content = record.content
    lines = [
        f"Map: {record.folder}",
        f"  rows       {content['num_rows']:,}, fitted on {content['num_sampled']:,}",
        f"  method     {content['method']} of {content['feature']}",
        *(f"  {name:<10} {command}" for name, command in commands.items() if name != "embedding-atlas"),
        f"  look at it {commands['embedding-atlas']}",
    ]
    return "".join(f"{line}\n" for line in lines)


def _text_option(record: "MapRecord") -> list[str]:
    texts = record.content["texts"]
    return ["--text", texts[0]] if texts else []


def _options(texts: Sequence[str]) -> list[str]:
    """How embedding-atlas reads the columns of a map, and that only this machine may connect."""
    return ["--x", "x", "--y", "y", "--neighbors", "neighbours", *texts, "--host", "127.0.0.1"]


def _check_viewer(path: str) -> None:
    if "://" in path and not path.startswith("file://"):
        msg = f"--open: {path} is in an object store. Remove --open, and copy the map's folder to this machine"
        raise JobError(msg)
    if find_spec("embedding_atlas") is None:
        msg = "--open needs embedding-atlas: run pip install '.[map]' in Varve's folder, or remove --open"
        raise JobError(msg)


def _open(record: "MapRecord") -> int:
    """Run embedding-atlas until it ends."""
    files = sorted(str(file) for file in Path(record.folder).glob("*.parquet"))
    sys.stdout.flush()
    command = [sys.executable, "-m", "embedding_atlas.cli", *files, *_options(_text_option(record))]
    try:
        code = subprocess.run(command, check=False).returncode  # noqa: S603 (its own arguments)
    except KeyboardInterrupt:
        return 0
    if code:
        msg = f"embedding-atlas ended with exit code {code}"
        raise RunError(msg)
    return 0
