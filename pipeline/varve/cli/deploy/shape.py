"""What a job says of the cluster that it wants: its name there, the files in its folder, and the nodes.

Knows nothing of Kubernetes or Slurm. Invariant: equal jobs have equal names, and jobs that differ have different ones.
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

# KubeRay appends what it needs to a name of its own and allows 47 characters.
_MOST_CHARACTERS = 47
_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes that the replicas of a job fill, those of the head apart."""

    min: int
    max: int
    gpus: int  # of each node; 0: nodes without

    @property
    def elastic(self) -> bool:
        """Whether nodes come and go with the work."""
        return self.max > self.min


def nodes(compute: Compute) -> Nodes:
    """As few GPUs to a node as its replicas can use; without GPUs one replica to a node."""
    gpus = 1.0 if compute.gpus == "auto" else compute.gpus
    replicas = compute.replicas
    if replicas == "auto":
        least = most = 1
    elif isinstance(replicas, int):
        least = most = replicas
    else:
        least, most = replicas.min, replicas.max
    to_a_node = max(1, int(1 / gpus)) if gpus else 1
    return Nodes(math.ceil(least / to_a_node), math.ceil(most / to_a_node), math.ceil(gpus))


def job_content(job: Job) -> dict[str, Any]:
    """What the job file says, without what it leaves to defaults."""
    return job.model_dump(mode="json", exclude_unset=True)


def job_files(job: Job) -> dict[str, str]:
    """{path below the job's folder: text}: the job file, and the Python modules that it names.

    Raises:
        JobError: a module is not there, or is not UTF-8.
    """
    return {JOB_FILE: to_yaml(job_content(job)), **job_modules(job)}


def job_name(job: Job) -> str:
    """A DNS label: varve, the end of the output's path, and a digest of the job and its functions' code.

    Raises:
        JobError: a function's module is not there.
    """
    told = "".join([json.dumps(job_content(job), sort_keys=True), *(code.sha256 for code in job_code(job))])
    digest = hashlib.sha256(told.encode()).hexdigest()[:_DIGITS]
    end = re.sub(r"[^a-z0-9]+", "-", job.output.path.rstrip("/").rpartition("/")[2].lower())
    room = _MOST_CHARACTERS - len("varve--") - _DIGITS
    return "-".join(part for part in ("varve", end[:room].strip("-"), digest) if part)


def to_yaml(*documents: dict[str, Any]) -> str:
    """YAML documents: keys in their order, long texts as blocks, everything written out."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
