"""One variant in a process of its own, which runs when it is told to and is silent otherwise.

`Session` does the work; `Remote` is the same from outside: it starts a process and hands its commands on, so that every
variant has its own allocator, threads and peak memory. python -m tests.bench.worker is that process: commands come in
as lines of JSON, answers go out likewise, arrays by files.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.peers import Setup
from tests.bench.variants import make

ROOT = Path(__file__).parents[2]


class AbsentError(Exception):
    """The variant can't run here: a package of it is missing, or it refuses the model."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run over the texts."""

    seconds: float  # from texts to vectors on the host
    encode_seconds: float | None  # from token ids; None where a variant does not take them


class Session:
    """A variant with its model and its texts."""

    def __init__(self, name: str, setup: Setup) -> None:
        self._name, self._setup = name, setup
        self._variant: Any = None
        self._texts: list[str] = []
        self._vectors: NDArray[np.float32] | None = None

    def load(self) -> dict[str, str]:
        """Load the model; returns the versions of what runs it, and which of its ways it takes here.

        Raises:
            AbsentError: it can't be had.
        """
        try:
            self._variant = make(self._name, self._setup)
        except ImportError as e:
            raise AbsentError(str(e)) from e
        found = dict(getattr(self._variant, "ways", {}))
        for package in self._variant.packages:
            with contextlib.suppress(PackageNotFoundError):
                found[package] = version(package)
        return found

    def use(self, texts: Sequence[str]) -> None:
        """Take other texts."""
        self._texts = list(texts)

    def run(self) -> Ran:
        """Encode the texts once."""
        variant, began = self._variant, time.perf_counter()
        tokens = variant.tokenize(self._texts)
        tokenized = time.perf_counter()
        self._vectors = variant.encode(tokens)
        done = time.perf_counter()
        return Ran(done - began, done - tokenized if variant.takes_tokens else None)

    def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """(R, layers x H) vectors of some texts, as the last run gave them."""
        assert self._vectors is not None
        return np.asarray(self._vectors[list(rows)], np.float32)

    def layers(self) -> list[int]:
        """Whose vectors stand side by side; negative ones count from the end."""
        return list(self._variant.layers)

    def measure(self) -> dict[str, float]:
        """Of the floor alone: its rates."""
        return self._variant.measure()

    def peak_bytes(self) -> int:
        """Largest resident set of this process so far."""
        status = Path("/proc/self/status")
        if status.exists():  # unlike getrusage, not that of the process from which this one was forked
            return next(int(line.split()[1]) * 1024 for line in status.open() if line.startswith("VmHWM"))
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def close(self) -> None:
        """Nothing to end in one's own process."""


class Remote:
    """A session in a process of its own."""

    def __init__(self, name: str, setup: Setup, *, folder: Path, python: str = sys.executable, env: dict[str, str]):
        self._file = folder / f"exchange-{id(self)}"
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [python, "-m", "tests.bench.worker", name, json.dumps(asdict(setup))],
            cwd=ROOT,
            env={**os.environ, **quiet, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.deadline = float("inf")  # on time.monotonic(); whoever answers later is ended

    def _ask(self, command: str, *arguments: Any) -> Any:
        process = self._process
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
            process.stdin.flush()
        left = None if self.deadline == float("inf") else max(0.0, self.deadline - time.monotonic())
        if not select.select([process.stdout], [], [], left)[0]:
            self.close()
            msg = "no answer within the time that is left"
            raise AbsentError(msg)
        line = process.stdout.readline()
        if not line:
            msg = f"its process ended with {process.wait()}"
            raise AbsentError(msg)
        answer = json.loads(line)
        if "error" in answer:
            raise AbsentError(answer["error"])
        return answer["value"]

    def load(self) -> dict[str, str]:
        """See `Session`."""
        return self._ask("load")

    def use(self, texts: Sequence[str]) -> None:
        """See `Session`."""
        file = self._file.with_suffix(".json")
        file.write_text(json.dumps(list(texts)))
        self._ask("use", str(file))

    def run(self) -> Ran:
        """See `Session`."""
        return Ran(**self._ask("run"))

    def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """See `Session`."""
        file = self._file.with_suffix(".npy")
        self._ask("vectors", list(rows), str(file))
        return np.load(file)

    def layers(self) -> list[int]:
        """See `Session`."""
        return self._ask("layers")

    def measure(self) -> dict[str, float]:
        """See `Session`."""
        return self._ask("measure")

    def peak_bytes(self) -> int:
        """See `Session`."""
        return self._ask("peak_bytes")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def _answer(session: Session, command: str, arguments: list[Any]) -> Any:
    if command == "use":
        return session.use(json.loads(Path(arguments[0]).read_text()))
    if command == "vectors":
        np.save(arguments[1], session.vectors(arguments[0]))
        return None
    value = getattr(session, command)(*arguments)
    return asdict(value) if isinstance(value, Ran) else value


def main(name: str, setup: str) -> None:
    """Answer until stdin ends. What libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session(name, Setup(**json.loads(setup)))
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = {"value": _answer(session, command, arguments)}
        except Exception as e:  # noqa: BLE001 (the other side decides)
            answer = {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
