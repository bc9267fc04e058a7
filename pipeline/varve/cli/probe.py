"""`varve probe PATH --label COLUMN`: train classifiers or regressions on the features of a run, and compare layers."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varve.cli.command import (
    print_json,
    require_extra,
    run,
    show_progress,
    split_names,
    start_ray_tasks,
    writable_folder,
)
from varve.errors import JobError

if TYPE_CHECKING:
    from varve.engine.parallel import Spread
    from varve.probe.models.study import Study

# The largest seed that numpy and scikit-learn accept.
_MAX_SEED = 2**32 - 1
_COLUMNS = {
    "--label": "column to predict: classes or numbers",
    "--groups": "keep rows with the same value in the same split",
    "--split": "column with the values train, validation and test, or `random` to split at random (default: the column "
    "`split` if the run has it, else random)",
    "--text": "texts for the bag of words, or `none` to leave it out (default: the texts of the job)",
    "--on": "key column that --join and the run have in common",
}
_CHOICES = {
    "--model": (("logistic", "ridge", "mlp"), "logistic for classes, ridge for numbers"),
    "--task": (("classification", "regression"), "classification for text and for few whole numbers, else regression"),
    "--class-weights": (("balanced", "none"), "balanced if the classes differ much in size"),
}
_DESCRIPTION = """Train a model on each feature of a finished run to predict a label, and compare the features and their
layers on test rows. Writes an HTML report, the figures as JSON, and the best model for `varve predict`."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("probe", _DESCRIPTION, _add_arguments, _probe, argv, uses_ray=True)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="output of a finished run")
    parser.add_argument("--output", default="probe", metavar="DIR", help="folder to write to (default: probe)")
    _add_data_arguments(parser)
    _add_model_arguments(parser)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    for flag, help_text in _COLUMNS.items():
        data.add_argument(flag, metavar="COLUMN", required=flag == "--label", help=help_text)
    data.add_argument("--join", metavar="FILE", help="table with further columns: .parquet, .csv or .jsonl")
    data.add_argument(
        "--features",
        type=split_names,
        default="all",
        metavar="A,B,...",
        help="columns, features (with all their layers), or columns joined by + (default: all)",
    )
    data.add_argument(
        "--with",
        type=split_names,
        default=(),
        dest="handcrafted",
        metavar="A,B,...",
        help="kept or computed columns to use in addition to the vectors",
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("models")
    for flag, (choices, meaning_of_auto) in _CHOICES.items():
        help_text = f"auto: {meaning_of_auto} (default: auto)"
        models.add_argument(flag, default="auto", choices=("auto", *choices), help=help_text)
    models.add_argument("--seed", type=int, default=0, help="seed of splits, networks and intervals (default: 0)")
    models.add_argument("--memory", metavar="BYTES", help="limit for vectors, such as 4GB (default: 2/5 of the memory)")


def _probe(arguments: argparse.Namespace) -> int:
    require_extra("sklearn", "jinja2")
    from varve.cluster.memory_limit import default_bytes, parse_bytes
    from varve.probe.data.dataset import Question
    from varve.probe.models.study import study
    from varve.probe.report import report
    from varve.process_state import silence_datasets, silence_transformers

    if not 0 <= arguments.seed <= _MAX_SEED:
        msg = f"--seed: {arguments.seed} is not allowed: expected 0 to {_MAX_SEED}"
        raise JobError(msg)
    silence_transformers()
    silence_datasets()
    folder = writable_folder(arguments.output)
    report.claim(folder)
    question = Question(**{field.name: getattr(arguments, field.name) for field in fields(Question)})
    memory = parse_bytes(arguments.memory) if arguments.memory else default_bytes()
    spread, workers = _start_ray() if os.environ.get("RAY_ADDRESS") else (map, 1)
    result = study(
        arguments.path,
        question,
        model=arguments.model,
        text=arguments.text,
        memory_bytes=memory,
        spread=spread,
        workers=workers,
        on_model=_show_progress,
    )
    content = report.write(result, folder)
    if arguments.json:
        print_json({**content, "output": str(folder)})
    else:
        sys.stdout.write(_text(result, content, folder))
    return 0


def _start_ray() -> "tuple[Spread, int]":
    """(function that trains models as tasks of the cluster at RAY_ADDRESS, models at the same time on a node)."""
    import ray

    spread = start_ray_tasks()
    return spread, max(1, int(ray.cluster_resources().get("CPU", 1) / max(1, len(ray.nodes()))))


def _show_progress(done: int, total: int, name: str) -> None:
    text = f"{done} of {total} models: {name}"
    if sys.stderr.isatty():
        show_progress(text if done < total else "")
    else:
        sys.stderr.write(f"{text}\n")


def _text(study: "Study", content: dict[str, Any], folder: Path) -> str:
    from varve.probe.models.metrics import TITLES
    from varve.probe.report.report import MODEL_NAME, PAGE_NAME, headline

    rows, left_out = content["rows"], content["rows"]["left_out"]
    groups = f" in {content['num_groups']:,} groups" if content["groups"] else ""
    lines = [f"{rows['train']:,} train, {rows['validation']:,} validation, {rows['test']:,} test rows{groups}"]
    lines += [f"  left out: {count:,} row{'s'[: count > 1]}, {reason}" for reason, count in left_out.items()]
    lines += [f"  note: {note}" for note in content["notes"]]
    lines += [f"  no {name}: {reason}" for name, reason in content["absent"].items()]
    width = max(len(result["name"]) for result in content["results"])
    metrics = list(content["results"][0]["test"])
    head = "".join(f"{TITLES[name] if len(TITLES[name]) < 12 else name:>11}" for name in metrics[1:])
    lines.append(f"\n  {'':<{width}}  {TITLES[metrics[0]]:<24}{head}")
    lines += [_row(result, metrics, width, study.best.name) for result in content["results"]]
    lines += [f"\n{headline(content)}", f"Report: {folder / PAGE_NAME}", f"Model:  {folder / MODEL_NAME}"]
    return "\n".join(lines) + "\n"


def _row(result: dict[str, Any], metrics: Sequence[str], width: int, best: str) -> str:
    from varve.probe.report.report import number

    first, *others = (result["test"][name] for name in metrics)
    interval = f"{number(first['value'])} ({number(first['low'])} to {number(first['high'])})"
    mark = "*" if result["name"] == best else " "
    more = "".join(f"{number(figure['value']):>11}" for figure in others)
    return f"{mark} {result['name']:<{width}}  {interval:<24}{more}"
