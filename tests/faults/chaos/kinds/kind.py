"""What a kind of job offers: commands for one place, and the comparison of their result with an undisturbed run."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Protocol

from tests.faults.chaos.kinds.corpus import Corpus
from tests.faults.chaos.stores import Store

OBJECT_STORES = ("ceph", "seaweed", "azure")
_UNDISTURBED_STARTS = 3


class Work(Protocol):
    """One job in one place.

    Attributes:
        commands: run one after the other, each until it exits with 0.
    """

    commands: list[list[str]]

    def write(self, draw: Random) -> None:
        """Change the source of the job, as another program does while the job runs."""
        ...

    def check(self, folder: Path) -> None:
        """Compare with the undisturbed run; `folder` takes reports.

        Raises:
            AssertionError: a row is missing, repeated or different, or the result is not whole.
        """
        ...


class Kind(Protocol):
    """A kind of job."""

    @property
    def stores(self) -> tuple[str, ...]:
        """Names of those that it can write to."""
        ...

    @property
    def has_writer(self) -> bool:
        """Whether other programs may change its source."""
        ...

    @property
    def uses_ray(self) -> bool:
        """Whether it starts a local Ray if there is no cluster."""
        ...

    @property
    def pause_s(self) -> float:
        """Mean time between two faults, in seconds."""
        ...

    def begin(self, store: Store, inputs: "Inputs", draw: Random) -> Work:
        """Prepare one job at a new address of a store."""
        ...


@dataclass
class Inputs:
    """Sources that all scenarios read, and results of undisturbed runs, each made once.

    Attributes:
        folder: of all of them.
        corpus: the texts.
        results: of undisturbed runs, by what they are of.
    """

    folder: Path
    corpus: Corpus
    results: dict = field(default_factory=dict)
    numbers: count = field(default_factory=count)

    def write_job(self, content: dict[str, Any]) -> Path:
        """Write a job file."""
        file = self.folder / f"job-{next(self.numbers)}.yaml"
        file.write_text(json.dumps(content))
        return file


def varve(*arguments: str) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "varve", *arguments]


def run_undisturbed(argv: list[str]) -> None:
    """Run a command without faults; again if it fails, since Ray may not start in time on a busy machine.

    Raises:
        AssertionError: it fails each time.
    """
    for _ in range(_UNDISTURBED_STARTS):
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode == 0:
            return
    msg = f"undisturbed: exit code {done.returncode}\n{done.stderr[-3000:]}"
    raise AssertionError(msg)
