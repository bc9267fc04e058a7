"""`varve render`: fill a job into what a cluster's scheduler takes, for `kubectl apply -f -` or `sbatch`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from varve.cli.command import print_json, run
from varve.cli.deploy import kuberay, slurm
from varve.cli.deploy.shape import to_yaml
from varve.cli.job_arguments import add_job_file
from varve.config.job import Job
from varve.errors import JobError

_OPTIONS = {"kuberay": kuberay.Options, "slurm": slurm.Options}


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("render", "Fill a job into what a cluster's scheduler takes.", _add, _render, argv)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", choices=tuple(_OPTIONS), help="kuberay: a RayJob; slurm: an sbatch script")
    add_job_file(parser)
    parser.add_argument("--output", metavar="DIR", help="write a file there, instead of to stdout")
    pods = parser.add_argument_group("kuberay")
    pods.add_argument("--image", help="required: REGISTRY/NAME:TAG, built from infra/docker/Dockerfile")
    pods.add_argument("--namespace", help="default: that of kubectl's context")
    pods.add_argument("--secret", metavar="NAME", help="Secret that holds what compute.env names, a key for each")
    pods.add_argument("--queue", help="Kueue's LocalQueue in which the run waits for its cluster")
    pods.add_argument("--claim", metavar="NAME:/PATH", help="PersistentVolumeClaim that every pod mounts at PATH")
    batch = parser.add_argument_group("slurm")
    batch.add_argument("--partition")
    batch.add_argument("--account")
    batch.add_argument("--time", help="limit of the job, for example 12:00:00; after it the job queues itself again")


def _render(arguments: argparse.Namespace) -> int:
    if not arguments.job:
        msg = "give a job file: varve render TARGET JOB.yaml"
        raise JobError(msg)
    job = Job.load(arguments.job, arguments.settings)
    options = _options(arguments)
    if isinstance(options, kuberay.Options):
        name, *documents = kuberay.render(job, options)
        text, suffix = f"{_heading(arguments)}{to_yaml(*documents)}", "yaml"
        content: dict[str, Any] = {"name": name, "documents": documents}
    else:
        name, text = slurm.render(job, options)
        suffix, content = "sbatch", {"name": name, "script": text}
    for note in _notes(job, options):
        sys.stderr.write(f"varve render: {note}\n")
    if arguments.output:
        content["file"] = str(_write(Path(arguments.output) / f"{name}.{suffix}", text))
    if arguments.json:
        print_json(content)
    else:
        sys.stdout.write(f"{content['file']}\n" if arguments.output else text)
    return 0


def _options(arguments: argparse.Namespace) -> kuberay.Options | slurm.Options:
    """What the target's flags say.

    Raises:
        JobError: a flag of another target was given, or one that is needed was not.
    """
    names = {target: [field.name for field in fields(options)] for target, options in _OPTIONS.items()}
    for target in names.keys() - {arguments.target}:
        foreign = [name for name in names[target] if getattr(arguments, name) is not None]
        if foreign:
            msg = f"--{foreign[0]} goes with {target}, not with {arguments.target}"
            raise JobError(msg)
    if arguments.target == "kuberay" and not arguments.image:
        msg = (
            "--image is missing: the image that the pods run, for example --image registry.example.com/varve:0.1.0-cuda"
        )
        raise JobError(msg)
    return _OPTIONS[arguments.target](**{name: getattr(arguments, name) for name in names[arguments.target]})


def _heading(arguments: argparse.Namespace) -> str:
    return f"# varve {version('varve')}: {Path(arguments.job).name}, rendered for KubeRay. kubectl apply -f\n"


def _notes(job: Job, options: kuberay.Options | slurm.Options) -> list[str]:
    """What the job leaves open and was decided here."""
    told: list[str] = []
    if job.compute.replicas == "auto":
        told.append(
            "compute.replicas is auto: one node. --set compute.replicas=8, or {min: 1, max: 8} on Kubernetes, for more"
        )
    if job.compute.gpus == "auto":
        told.append("compute.gpus is auto: nodes with a GPU. --set compute.gpus=0 for nodes without")
    if isinstance(options, kuberay.Options) and options.moving:
        told.append(
            f"--image: {options.image} may be another image tomorrow, and then the cluster's nodes differ: give a tag"
        )
    return told


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        msg = f"--output: {path} can't be written: {e.strerror}"
        raise JobError(msg) from e
    return path
