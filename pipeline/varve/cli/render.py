"""`varve render`: write a job as what a scheduler takes, for `kubectl apply -f -` or `sbatch`."""

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
_DESCRIPTION = """Write a job as a RayJob for KubeRay (Kubernetes), or as an sbatch script for Slurm. The result holds
the job file and its Python modules. No cluster is contacted."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run("render", _DESCRIPTION, _add_arguments, _render, argv)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", choices=tuple(_OPTIONS), help="kuberay: a RayJob; slurm: an sbatch script")
    add_job_file(parser)
    parser.add_argument("--output", metavar="DIR", help="write a file to this folder (default: write to stdout)")
    pods = parser.add_argument_group("kuberay")
    pods.add_argument("--image", help="required: REGISTRY/NAME:TAG of an image built from infra/docker/Dockerfile")
    pods.add_argument("--namespace", help="namespace of the RayJob (default: that of kubectl's context)")
    pods.add_argument("--secret", metavar="NAME", help="Secret with a key for each variable of compute.env")
    pods.add_argument("--queue", metavar="NAME", help="Kueue's LocalQueue in which the run waits for its nodes")
    pods.add_argument("--claim", metavar="NAME:/PATH", help="PersistentVolumeClaim to mount at /PATH in every pod")
    batch = parser.add_argument_group("slurm")
    batch.add_argument("--partition", metavar="NAME", help="partition of the nodes")
    batch.add_argument("--account", metavar="NAME", help="account to charge")
    batch.add_argument("--time", metavar="LIMIT", help="time limit, such as 12:00:00; then the job requeues itself")


def _render(arguments: argparse.Namespace) -> int:
    if not arguments.job:
        msg = "give a job file: varve render TARGET JOB.yaml"
        raise JobError(msg)
    job = Job.load(arguments.job, arguments.settings)
    options = _options(arguments)
    if isinstance(options, kuberay.Options):
        name, *documents = kuberay.render(job, options)
        header = f"# varve {version('varve')}: {Path(arguments.job).name}, rendered for KubeRay. kubectl apply -f\n"
        text, suffix = f"{header}{to_yaml(*documents)}", "yaml"
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
    """Return the settings of the target.

    Raises:
        JobError: an argument of the other target was given, or a required one was not.
    """
    names = {target: [field.name for field in fields(options)] for target, options in _OPTIONS.items()}
    for target in names.keys() - {arguments.target}:
        foreign = [name for name in names[target] if getattr(arguments, name) is not None]
        if foreign:
            msg = f"--{foreign[0]} goes with {target}, not with {arguments.target}"
            raise JobError(msg)
    if arguments.target == "kuberay" and not arguments.image:
        msg = "--image is missing: the image of the pods, for example --image registry.example.com/varve:0.2.0-cuda"
        raise JobError(msg)
    return _OPTIONS[arguments.target](**{name: getattr(arguments, name) for name in names[arguments.target]})


def _notes(job: Job, options: kuberay.Options | slurm.Options) -> list[str]:
    """Return what was decided because the job leaves it open."""
    notes: list[str] = []
    if job.compute.replicas == "auto":
        notes.append(
            "compute.replicas is auto: rendered for one node. For more, --set compute.replicas=8, or on Kubernetes "
            "{min: 1, max: 8}"
        )
    if job.compute.gpus == "auto":
        notes.append("compute.gpus is auto: rendered for nodes with a GPU. For CPUs, --set compute.gpus=0")
    if isinstance(options, kuberay.Options) and options.image_may_change:
        notes.append(f"--image: {options.image} may change, so nodes of a cluster can differ: give a tag or a digest")
    return notes


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as e:
        msg = f"--output: {path} cannot be written: {e.strerror}"
        raise JobError(msg) from e
    return path
