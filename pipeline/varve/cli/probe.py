"""`varve probe PATH --label COLUMN`: train on a run's features, and say which layer knows most."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varve.cli.command import print_json, run, writable_folder
from varve.errors import JobError

if TYPE_CHECKING:
    from varve.probe.models.study import Study
    from varve.verification.verify import Spread

# What numpy and scikit-learn both take.
_MOST_SEED = 2**32 - 1


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    describe = "Train on a run's features, and say which layer knows most about a label."
    return run("probe", describe, _add, _probe, argv, on_ray=True)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the output of a finished run")
    parser.add_argument("--label", required=True, metavar="COLUMN", help="what to predict: classes or numbers")
    parser.add_argument(
        "--features",
        default="all",
        metavar="A,B,...",
        help="columns, features (all their layers), or columns joined by +; default: all",
    )
    parser.add_argument("--with", dest="handcrafted", metavar="A,B,...", help="columns beside the vectors")
    parser.add_argument("--join", metavar="FILE", help="another table with further columns: .parquet, .csv or .jsonl")
    parser.add_argument("--on", metavar="COLUMN", help="the column that --join and the run share")
    parser.add_argument("--groups", metavar="COLUMN", help="rows with the same value never stand on both sides")
    parser.add_argument(
        "--split", metavar="COLUMN", help="a column that says train, validation or test; random: none does"
    )
    parser.add_argument("--text", metavar="COLUMN", help="kept texts; none: no bag of words; default: the job's own")
    parser.add_argument("--model", default="auto", choices=("auto", "logistic", "ridge", "mlp"))
    parser.add_argument("--task", default="auto", choices=("auto", "classification", "regression"))
    parser.add_argument("--class-weights", default="auto", choices=("auto", "balanced", "none"))
    parser.add_argument("--seed", type=int, default=0, help="of splits, networks and intervals; default: 0")
    parser.add_argument("--memory", metavar="BYTES", help="for vectors, such as 4GB; default: 2/5 of the machine's")
    parser.add_argument("--output", default="probe", metavar="DIR", help="of report and model; default: probe")


def _probe(arguments: argparse.Namespace) -> int:
    require_extra("sklearn", "jinja2")
    from varve.library_logs import quiet_datasets, quiet_transformers
    from varve.probe.data.dataset import Question
    from varve.probe.data.memory_limit import default_bytes, parse_bytes
    from varve.probe.models.study import study
    from varve.probe.report import report

    _refuse_seed(arguments.seed)
    quiet_transformers()
    quiet_datasets()
    folder = writable_folder(arguments.output)
    report.claim(folder)
    question = Question(
        label=arguments.label,
        features=listed(arguments.features),
        handcrafted=listed(arguments.handcrafted),
        groups=arguments.groups,
        split=arguments.split,
        join=arguments.join,
        on=arguments.on,
        task=arguments.task,
        class_weights=arguments.class_weights,
        seed=arguments.seed,
    )
    memory = parse_bytes(arguments.memory) if arguments.memory else default_bytes()
    spread, workers = _on_ray() if os.environ.get("RAY_ADDRESS") else (map, 1)
    found = study(
        arguments.path,
        question,
        model=arguments.model,
        text=arguments.text,
        memory_bytes=memory,
        spread=spread,
        workers=workers,
        on_model=_show,
    )
    content = report.write(found, folder)
    if arguments.json:
        print_json({**content, "output": str(folder)})
    else:
        sys.stdout.write(_told(found, content, folder))
    return 0


def _refuse_seed(seed: int) -> None:
    if not 0 <= seed <= _MOST_SEED:
        msg = f"--seed: {seed} is not allowed: expected 0 to {_MOST_SEED}"
        raise JobError(msg)


def listed(text: str | None) -> tuple[str, ...]:
    """The names in `A, B,...`."""
    return tuple(word.strip() for word in text.split(",") if word.strip()) if text else ()


def require_extra(*modules: str) -> None:
    """Say how to get what the probe needs beside the core.

    Raises:
        JobError: it is not installed.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        msg = f"this command needs {' and '.join(missing)}: pip install '.[probe]' in Varve's folder brings them"
        raise JobError(msg)


def _on_ray() -> "tuple[Spread, int]":
    """Models as tasks of the cluster that RAY_ADDRESS names."""
    import ray

    from varve.cluster.connection import start_ray
    from varve.config.compute import Compute
    from varve.engine.ray_tasks import spread

    start_ray(Compute())
    return spread, max(1, int(ray.cluster_resources().get("CPU", 1) / max(1, len(ray.nodes()))))


def _show(done: int, of: int, name: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{done} of {of} models: {name}" if done < of else "\r\033[K")
    else:
        sys.stderr.write(f"{done} of {of} models: {name}\n")


def _told(found: "Study", content: dict[str, Any], folder: Path) -> str:
    from varve.probe.models.metrics import TITLES
    from varve.probe.report.report import MODEL_NAME, PAGE_NAME, headline

    rows, left_out = content["rows"], content["rows"]["left_out"]
    groups = f" in {content['num_groups']:,} groups" if content["groups"] else ""
    told = [f"{rows['train']:,} train, {rows['validation']:,} validation, {rows['test']:,} test rows{groups}\n"]
    told += [f"  left out: {count:,} row{'s'[: count > 1]}, {reason}\n" for reason, count in left_out.items()]
    told += [f"  note: {note}\n" for note in content["notes"]]
    told += [f"  no {name}: {why}\n" for name, why in content["absent"].items()]
    width = max(len(result["name"]) for result in content["results"])
    names = list(content["results"][0]["test"])
    head = "".join(f"{TITLES[name] if len(TITLES[name]) < 12 else name:>11}" for name in names[1:])
    told.append(f"\n  {'':<{width}}  {TITLES[names[0]]:<24}{head}\n")
    told += [_row(result, names, width, found.best.name) for result in content["results"]]
    told.append(f"\n{headline(content)}\n")
    told.append(f"Report: {folder / PAGE_NAME}\nModel:  {folder / MODEL_NAME}\n")
    return "".join(told)


def _row(result: dict[str, Any], names: Sequence[str], width: int, best: str) -> str:
    from varve.probe.report.report import number

    first, *rest = (result["test"][name] for name in names)
    told = f"{number(first['value'])} ({number(first['low'])} to {number(first['high'])})"
    mark = "*" if result["name"] == best else " "
    more = "".join(f"{number(figure['value']):>11}" for figure in rest)
    return f"{mark} {result['name']:<{width}}  {told:<24}{more}\n"
