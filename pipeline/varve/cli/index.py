"""`varve index PATH --to TARGET:DEST`: build a search index of a finished output and prove its recall."""

import argparse
import sys
from collections.abc import Sequence

from varve.cli.command import print_json, run, show_progress, split_names
from varve.cli.index_summary import index_json, index_summary
from varve.config.index import TARGETS, Index
from varve.errors import JobError

_FLAGS = ("to", "feature", "kind", "recall", "memory", "queries", "key", "keep", "send", "shards")
_DESCRIPTION = f"""Build a search index of a feature of a finished run, measure its recall against exact neighbours, and
publish it if the recall is sufficient. An interrupted build is continued by the same command; a published index is not
built again. Targets: {", ".join(TARGETS)}. Passwords come from the environment."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code: 1 if no index reaches the recall, or a check fails."""
    return run("index", _DESCRIPTION, _add_arguments, _index, argv, uses_ray=True, resumable=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", help="output of a finished run; an index file (.yaml); with --verify an index"
    )
    parser.add_argument("--to", metavar="TARGET:DEST", help="what to build, and where: faiss:DIR, postgresql://HOST/DB")
    parser.add_argument("--feature", metavar="NAME", help="feature to index (default: the only one)")
    parser.add_argument("--kind", help="type of the index, as the target names it (default: auto)")
    parser.add_argument(
        "--recall", type=float, metavar="SHARE", help="recall@10 to reach, with 95 %% confidence (default: 0.95)"
    )
    parser.add_argument("--memory", metavar="BYTES", help="of the index, such as 4GB (default: half of the memory)")
    parser.add_argument("--queries", metavar="FILE", help=".jsonl or .parquet with `text`: also measure these queries")
    parser.add_argument("--key", metavar="COLUMN", help="kept column that identifies a document in a server")
    parser.add_argument("--keep", type=split_names, metavar="A,B,...", help="kept columns to copy to the index")
    parser.add_argument("--send", metavar="URL", help="server that receives the documents of ndjson")
    parser.add_argument("--shards", type=int, metavar="N", help="graph indexes to build in parallel")
    parser.add_argument("--verify", action="store_true", help="check the published index at PATH instead")


def _index(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        return _verify(arguments)
    settings = _settings(arguments)
    from varve.indexing.build import build

    built = build(settings, on_step=_show_step)
    if arguments.json:
        content = {"address": built.address, "finished_before": built.finished_before}
        print_json(content | index_json(built.record))
    elif built.finished_before:
        sys.stdout.write(f"Nothing to do: {built.address} is complete since {built.record.created_at}.\n")
    else:
        sys.stdout.write(index_summary(built.record, built.address))
    return 0


def _settings(arguments: argparse.Namespace) -> Index:
    given = {name: getattr(arguments, name) for name in _FLAGS if getattr(arguments, name) is not None}
    if arguments.path.endswith((".yaml", ".yml")):
        if given:
            msg = f"an index file and --{next(iter(given))} were both given. Change the value in {arguments.path}"
            raise JobError(msg)
        return Index.load(arguments.path)
    if "to" not in given:
        msg = f"--to is missing: expected TARGET:DEST, where TARGET is one of {', '.join(TARGETS)}"
        raise JobError(msg)
    return Index.parse({"path": arguments.path, **given}, "command line")


def _verify(arguments: argparse.Namespace) -> int:
    from varve.indexing.open_target import find_index

    found = find_index(arguments.path)
    if found is None:
        msg = f"{arguments.path} holds no published index: expected its folder, or TARGET:DEST as --to named it"
        raise JobError(msg)
    failures = found.target.verify(found.record)
    if arguments.json:
        print_json({"address": found.target.address, "passed": not failures, "failures": failures})
    else:
        sys.stdout.writelines(f"  FAILED   {failure}\n" for failure in failures)
        sys.stdout.write(f"{'Not verified' if failures else 'Verified'}: {found.target.address}\n")
    return 1 if failures else 0


def _show_step(step: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        show_progress("" if total and done == total else f"{step}: {done:,} of {total:,}")
    elif not done:
        sys.stderr.write(f"{step}\n")
