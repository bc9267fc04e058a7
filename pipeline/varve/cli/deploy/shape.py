"""What a scheduler needs to know of a job: its name, its files and its nodes.

Knows nothing of Kubernetes or Slurm. Invariant: equal jobs have equal names, and different jobs different names.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from varve.config.compute import Compute
from varve.config.job import Job
from varve.submission.package import JOB_FILE, job_code, job_modules

# KubeRay appends suffixes to the name, and so allows only 47 characters.
_MAX_CHARACTERS = 47
_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Nodes:
    """The worker nodes of a job, without the head."""

    min: int
    max: int
    gpus: int  # of each node; 0: nodes without GPUs

    @property
    def elastic(self) -> bool:
        """Whether an autoscaler changes the number of nodes."""
        return self.max > self.min


def nodes_of(compute: Compute) -> Nodes:
    """Return the nodes of the replicas: one replica per node, or as many as share one GPU."""
    gpus = 1.0 if compute.gpus == "auto" else compute.gpus
    replicas = compute.replicas
    if replicas == "auto":
        low = high = 1
    elif isinstance(replicas, int):
        low = high = replicas
    else:
        low, high = replicas.min, replicas.max
    per_node = max(1, int(1 / gpus)) if gpus else 1
    return Nodes(math.ceil(low / per_node), math.ceil(high / per_node), math.ceil(gpus))


def job_files(job: Job) -> dict[str, str]:
    """{path below the job's folder: text} of the job file and its Python modules.

    Raises:
        JobError: a module does not exist, or is not UTF-8.
    """
    return {JOB_FILE: to_yaml(_content(job)), **job_modules(job)}


def job_name(job: Job) -> str:
    """Return a DNS label of `varve`, the end of the output's path, and a digest of the job and its functions' code.

    Raises:
        JobError: the module of a function does not exist.
    """
    content = "".join([json.dumps(_content(job), sort_keys=True), *(code.sha256 for code in job_code(job))])
    digest = hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]
    end = re.sub(r"[^a-z0-9]+", "-", job.output.address.rstrip("/").rpartition("/")[2].lower())
    room = _MAX_CHARACTERS - len("varve--") - _DIGITS
    return "-".join(part for part in ("varve", end[:room].strip("-"), digest) if part)


def _content(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude_unset=True)


def to_yaml(*documents: dict[str, Any]) -> str:
    """Return YAML documents: keys in their order, texts of several lines as blocks, no aliases."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
