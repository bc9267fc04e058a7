"""`varve search PATH TEXT ...`: the rows of an output that are nearest to texts; relevance; near duplicates."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varve.cli.command import print_json, run, split_names
from varve.errors import JobError, RunError

if TYPE_CHECKING:
    import pyarrow as pa

    from varve.retrieval.retriever import Retriever

_DESCRIPTION = """Find the rows of a finished output that are nearest to texts. PATH is the output, all of whose vectors
are then compared, or an index of it. Texts are encoded with the checkpoint of the run, as it declares for queries.
Nothing is written, except the file that --output names."""
_MODES = "expected texts, or --questions and --qrels, or --near-duplicates"


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("search", _DESCRIPTION, _add_arguments, _search, argv, uses_ray=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", help="output of a finished run, or an index: a folder, TARGET:DEST or a server")
    add("texts", metavar="TEXT", nargs="*", help="queries; write them before the options")
    add("-k", type=int, default=10, metavar="N", help="answers of each query (default: 10)")
    add("--feature", metavar="NAME", help="feature of the output (default: the only dense one)")
    add("--index", metavar="DEST", help="index of the output at PATH, needed if the output was moved")
    add("--rescore", type=int, default=0, metavar="N", help="candidates of the index whose exact scores decide")
    add(
        "--hybrid", nargs="?", const="", metavar="WITH",
        help="fuse with a second ranking by reciprocal rank: the run's sparse feature, or WITH = a feature, "
        "PATH:FEATURE of another run of the same source, or bm25:COLUMN",
    )  # fmt: skip
    add(
        "--show", type=split_names, metavar="A,B,...", help="kept columns to show (default: those of the index, or all)"
    )
    add("--query-prompt", metavar="TEXT", help="text before each query, in place of the one that the model declares")
    add("--model", metavar="NAME", help="folder or Hub id of the run's checkpoint, if it was moved")
    add("--trust-remote-code", action="store_true", help="run Python code that comes with the run's checkpoint")
    add("--questions", metavar="FILE", help='JSON Lines or Parquet with "id" and "text": measure relevance')
    add("--qrels", metavar="FILE", help="judgements: question, document, relevance, or TREC's four columns")
    add("--key", metavar="NAME", help="kept column that identifies documents in --qrels (default: shard/row)")
    add("--near-duplicates", type=float, metavar="SCORE", help="list pairs of rows with at least this score")
    add("--output", metavar="FILE", help="with --near-duplicates: write all pairs to this Parquet file")


def _search(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from varve.indexing.query_encoder import QueryOptions
    from varve.process_state import silence_transformers
    from varve.retrieval.search import open_retriever

    silence_transformers()
    with open_retriever(
        arguments.path,
        feature=arguments.feature,
        index=arguments.index,
        rescore=arguments.rescore,
        hybrid=arguments.hybrid,
        options=QueryOptions(arguments.query_prompt, arguments.model, arguments.trust_remote_code),
    ) as retriever:
        if arguments.near_duplicates is not None:
            return _list_duplicates(arguments, retriever)
        return _measure(arguments, retriever) if arguments.questions else _answer(arguments, retriever)


def _check(arguments: argparse.Namespace) -> None:
    modes = [bool(arguments.texts), bool(arguments.questions), arguments.near_duplicates is not None]
    if sum(modes) != 1:
        hint = ""
        if arguments.hybrid and not any(modes):
            hint = f". {arguments.hybrid!r} was read as the value of --hybrid: write texts before the options"
        raise JobError(_MODES + hint)
    wrong = {
        "--questions and --qrels need each other": bool(arguments.questions) != bool(arguments.qrels),
        "--key needs --qrels": arguments.key and not arguments.qrels,
        "--output needs --near-duplicates": arguments.output and arguments.near_duplicates is None,
        "--near-duplicates compares rows: remove --hybrid and --rescore": arguments.near_duplicates is not None
        and (arguments.hybrid is not None or arguments.rescore),
    }
    if message := next((message for message, is_wrong in wrong.items() if is_wrong), None):
        raise JobError(message)


def _answer(arguments: argparse.Namespace, retriever: "Retriever") -> int:
    from varve.cli.search_report import answers_to_json, answers_to_text, columns_to_show

    collection = retriever.collection
    columns = collection.default_columns() if arguments.show is None else list(arguments.show)
    if arguments.show is None and not arguments.json:
        columns = columns_to_show(collection.output, columns)
    table = retriever.answer(arguments.texts, arguments.k, columns)
    if arguments.json:
        print_json(_header(retriever) | {"queries": answers_to_json(arguments.texts, table)})
    else:
        sys.stdout.writelines(answers_to_text(arguments.texts, table, columns))
    return 0


def _header(retriever: "Retriever") -> dict[str, Any]:
    collection = retriever.collection
    index = collection.index.target.address if collection.index else None
    return {"path": collection.output.storage.uri, "feature": collection.column.name, "index": index}


def _measure(arguments: argparse.Namespace, retriever: "Retriever") -> int:
    from varve.cli.search_report import relevance_to_json, relevance_to_text
    from varve.indexing.query_file import read_questions
    from varve.retrieval.evaluation import evaluate
    from varve.retrieval.judgements import read_judgements

    judgements = read_judgements(arguments.qrels)
    result = evaluate(retriever, read_questions(arguments.questions), judgements, arguments.key)
    if arguments.json:
        print_json(_header(retriever) | relevance_to_json(result))
    else:
        sys.stdout.writelines(relevance_to_text(result))
    return 0


def _list_duplicates(arguments: argparse.Namespace, retriever: "Retriever") -> int:
    from varve.cli.search_report import columns_to_show, duplicates_to_json, duplicates_to_text, texts_of_pairs
    from varve.retrieval.near_duplicates import SCHEMA, find_near_duplicates

    collection, threshold = retriever.collection, arguments.near_duplicates
    with _open_file(arguments.output, SCHEMA) as write:
        result = find_near_duplicates(collection, threshold, num_first=max(arguments.k, 0), write=write)
    if arguments.json:
        print_json(_header(retriever) | duplicates_to_json(result, threshold, arguments.output))
        return 0
    shown = columns_to_show(collection.output, collection.default_columns())[-1:]
    columns = shown if arguments.show is None else list(arguments.show)
    texts = texts_of_pairs(collection.output, result, columns)
    sys.stdout.writelines(duplicates_to_text(result, threshold, texts, arguments.output))
    return 0


@contextmanager
def _open_file(path: str | None, schema: "pa.Schema") -> Iterator[Any]:
    """What appends tables to a Parquet file, which exists only after the end of the context."""
    if path is None:
        yield lambda _table: None
        return
    import pyarrow.parquet as pq

    target = Path(path).absolute()
    exists = os.path.lexists(target)
    if "://" in path or exists or not os.path.isdir(target.parent):  # noqa: PTH112 (unlike Path's: False for any name)
        reason = "exists already" if exists else "is not a file in an existing local folder"
        msg = f"--output: {path} {reason}. Choose another file"
        raise JobError(msg)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        file = partial.open("xb")  # not through a link that another user has put into a shared folder
    except (OSError, ValueError) as e:
        msg = f"--output: {path:.200} cannot be written: {getattr(e, 'strerror', None) or e}"
        raise RunError(msg) from e
    try:
        with file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            yield writer.write_table
        partial.rename(target)
    except OSError as e:
        msg = f"--output: {path} cannot be written: {e.strerror or e}"
        raise RunError(msg) from e
    finally:
        partial.unlink(missing_ok=True)
