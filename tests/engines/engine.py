"""An engine that runs in an environment of its own, as a child process."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.docs.pages import ROOT

CHILDREN = Path(__file__).parent / "children"


class EngineError(Exception):
    """What the engine raised."""


class Engine:
    """A started engine; its log is in `folder`."""

    def __init__(self, environment: str, script: str, folder: Path, *arguments: str) -> None:
        python = ROOT / f".venv-{environment}/bin/python"
        if not python.exists():
            pytest.skip(f"{python.parents[1].name} is missing: run make lakes")
        self.folder, self._log, self._exports = folder, folder / f"{environment}.log", 0
        command, pipe = [str(python), str(CHILDREN / script), *arguments], subprocess.PIPE
        with self._log.open("w") as log:  # it ends when its standard input does, so with this process
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=log, text=True, bufsize=1, cwd=folder
            )

    def sql(self, text: str) -> list[list[Any]]:
        """The rows that a statement returns."""
        return self._ask("sql", text=text)

    def table(self, query: str) -> pa.Table:
        """The result of a query, through a Parquet file."""
        return self.exported("export", query=query)

    def exported(self, name: str, **arguments: Any) -> pa.Table:
        """What an operation writes as Parquet."""
        self._exports += 1
        path = self.folder / f"export-{self._exports}.parquet"
        self._ask(name, **arguments, path=str(path))
        return pq.read_table(path)

    def operate(self, name: str, **arguments: Any) -> Any:
        """The result of an operation that this engine alone has."""
        return self._ask(name, **arguments)

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, name: str, **arguments: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps({"name": name, "arguments": arguments}), file=self._process.stdin)
        answer = self._process.stdout.readline()
        assert answer, f"the engine ended: {self._log.read_text()[-4000:]}"
        if "error" in (decoded := json.loads(answer)):
            raise EngineError(decoded["error"])
        return decoded["value"]
