"""One variant in its own process, which is idle between commands.

`Session` does the work. `Remote` has the same methods: it starts a process and forwards the commands, so that every
variant has its own allocator, threads and peak memory. python -m tests.bench.worker is that process: commands and
answers are lines of JSON, arrays are files.
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
    """The variant cannot run: a package is missing, or it does not support the model."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run over the texts."""

    seconds: float  # from texts to vectors on the host
    encode_seconds: float | None  # from token ids; None if the variant takes texts


class Session:
    """A variant with its model and texts."""

    def __init__(self, name: str, setup: Setup) -> None:
        self._name, self._setup = name, setup
        self._variant: Any = None
        self._texts: list[str] = []
        self._vectors: NDArray[np.float32] | None = None

    def load(self) -> dict[str, str]:
        """Load the model; returns the code paths that it takes, and the versions of its packages.

        Raises:
            AbsentError: a package is missing.
        """
        try:
            self._variant = make(self._name, self._setup)
        except ImportError as e:
            raise AbsentError(str(e)) from e
        description = dict(getattr(self._variant, "ways", {}))
        for package in self._variant.packages:
            with contextlib.suppress(PackageNotFoundError):
                description[package] = version(package)
        return description

    def use(self, texts: Sequence[str]) -> None:
        """Set the texts."""
        self._texts = list(texts)

    def run(self) -> Ran:
        """Encode the texts once."""
        variant, started = self._variant, time.perf_counter()
        tokens = variant.tokenize(self._texts)
        tokenized = time.perf_counter()
        self._vectors = variant.encode(tokens)
        done = time.perf_counter()
        return Ran(done - started, done - tokenized if variant.takes_tokens else None)

    def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """(R, layers x H) vectors of some texts, from the last run."""
        assert self._vectors is not None
        return np.asarray(self._vectors[list(rows)], np.float32)

    def layers(self) -> list[int]:
        """The layers of a vector's blocks; negative numbers count from the last layer."""
        return list(self._variant.layers)

    def measure(self) -> dict[str, float]:
        """The rates of the floor; other variants do not have them."""
        return self._variant.measure()

    def peak_bytes(self) -> int:
        """Largest resident set of this process so far."""
        status = Path("/proc/self/status")
        if status.exists():  # getrusage would include the process that this one was forked from
            return next(int(line.split()[1]) * 1024 for line in status.open() if line.startswith("VmHWM"))
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def close(self) -> None:
        """Nothing to do: there is no other process."""


class Remote:
    """A session in its own process."""

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
        self.deadline = float("inf")  # on time.monotonic(); a process that answers later is killed

    def _call(self, command: str, *arguments: Any) -> Any:
        process = self._process
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
            process.stdin.flush()
        timeout_s = None if self.deadline == float("inf") else max(0.0, self.deadline - time.monotonic())
        if not select.select([process.stdout], [], [], timeout_s)[0]:
            self.close()
            msg = "no answer before the deadline"
            raise AbsentError(msg)
        line = process.stdout.readline()
        if not line:
            msg = f"its process ended with exit code {process.wait()}"
            raise AbsentError(msg)
        answer = json.loads(line)
        if "error" in answer:
            raise AbsentError(answer["error"])
        return answer["value"]

    def load(self) -> dict[str, str]:
        """See `Session`."""
        return self._call("load")

    def use(self, texts: Sequence[str]) -> None:
        """See `Session`."""
        file = self._file.with_suffix(".json")
        file.write_text(json.dumps(list(texts)))
        self._call("use", str(file))

    def run(self) -> Ran:
        """See `Session`."""
        return Ran(**self._call("run"))

    def vectors(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """See `Session`."""
        file = self._file.with_suffix(".npy")
        self._call("vectors", list(rows), str(file))
        return np.load(file)

    def layers(self) -> list[int]:
        """See `Session`."""
        return self._call("layers")

    def measure(self) -> dict[str, float]:
        """See `Session`."""
        return self._call("measure")

    def peak_bytes(self) -> int:
        """See `Session`."""
        return self._call("peak_bytes")

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
    """Answer commands until stdin ends. Output of libraries goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = Session(name, Setup(**json.loads(setup)))
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = {"value": _answer(session, command, arguments)}
        except Exception as e:  # noqa: BLE001 (the other process decides)
            answer = {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
