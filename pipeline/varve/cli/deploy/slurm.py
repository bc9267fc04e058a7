"""Fills in jobs/templates/slurm/varve.sbatch for a job: the header, the job file and its Python modules."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from varve.cli.deploy.shape import job_files, job_name, nodes_of
from varve.cli.deploy.template import read_template
from varve.config.compute import Replicas
from varve.config.job import Job
from varve.errors import JobError
from varve.submission.package import JOB_FILE

_WORD = re.compile(r"[A-Za-z0-9_.,:+-]+")
_END = "END_OF_JOB"


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of the Slurm cluster, which a job file does not have.

    Raises:
        JobError: a value is not a single word, and would break the header.
    """

    partition: str | None = None
    account: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        for flag, value in {"--partition": self.partition, "--account": self.account, "--time": self.time}.items():
            if value is not None and not _WORD.fullmatch(value):
                msg = f"{flag}: {value!r} is not allowed: expected letters, digits and _ . , : + -"
                raise JobError(msg)


def render(job: Job, options: Options) -> tuple[str, str]:
    """(name, script) of a job.

    Raises:
        JobError: the job needs a pool that grows, or one of its Python modules does not exist.
    """
    nodes, replicas = nodes_of(job.compute), job.compute.replicas
    if isinstance(replicas, Replicas):
        msg = (
            "compute.replicas: the nodes of a Slurm job are fixed. Set a number of replicas, for example "
            f"--set compute.replicas={replicas.max}"
        )
        raise JobError(msg)
    name = job_name(job)
    kind = f"{job.compute.accelerator.lower()}:" if job.compute.accelerator else ""
    header = {
        "job-name": name,
        "nodes": str(nodes.max),
        "gpus-per-node": f"{kind}{nodes.gpus}" if nodes.gpus else None,
        "partition": options.partition,
        "account": options.account,
        **({"time": options.time} if options.time else {}),
    }
    script = _with_header(read_template("slurm/varve.sbatch"), header)
    script = script.replace("sbatch jobs/templates/slurm/varve.sbatch job.yaml", f"sbatch {name}.sbatch", 1)
    before, taken, after = script.partition("job=${1:?usage: sbatch varve.sbatch JOB.yaml}\n\n")
    assert taken, "the script takes its job from its first argument"
    place = 'chmod 700 "$scratch"\n'
    return name, before + after.replace(place, place + _write_all(job_files(job)), 1)


def _write_all(files: Mapping[str, str]) -> str:
    """Return commands that write the job file and its modules byte for byte to a folder that holds nothing else."""
    folders = sorted({str(PurePosixPath("$scratch/job", path).parent) for path in files})
    quoted = " ".join(f'"{folder}"' for folder in folders)
    return f"job=$scratch/job/{JOB_FILE}\nmkdir -p {quoted}\n" + "".join(_write(*file) for file in files.items())


def _write(path: str, text: str) -> str:
    end = _END
    while f"\n{end}\n" in f"\n{text}\n":
        end += "_"
    # A here-document always ends with a newline, which the file may lack.
    command, lines = ("cat", text) if text.endswith("\n") else ("head -c -1", f"{text}\n")
    return f"{command} >\"$scratch/job/{path}\" <<'{end}'\n{lines}{end}\n"


def _with_header(script: str, header: Mapping[str, str | None]) -> str:
    """Return the script with options of its header replaced, added, or removed if their value is None."""
    lines: list[str] = []
    to_add = {key: value for key, value in header.items() if value}
    for line in script.splitlines():
        option = re.match(r"#SBATCH --([a-z-]+)=", line)
        if option and option[1] in header:
            value = to_add.pop(option[1], None)
            lines += [f"#SBATCH --{option[1]}={value}"] if value else []
        else:
            lines.append(line)
    last = max(at for at, line in enumerate(lines) if line.startswith("#SBATCH"))
    lines[last + 1 : last + 1] = [f"#SBATCH --{key}={value}" for key, value in to_add.items()]
    return "\n".join(lines) + "\n"
