"""A job that does not end by itself: the same file of texts, linked under many names.

Knows nothing of measuring. Invariant: the job's temporary files are below a folder of its own.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tests.waiting import RUN_S
from varve.cli.corpus import docstrings, model_folder

_LAYERS, _HEADS = 2, 4
_STOPPED = 128 + signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of a job.

    Attributes:
        shards: files of the source.
        rows_per_shard: rows of each.
        rows_per_part: rows of a part of the output.
        dimensions: of the model's vectors; it has two layers, so that the work around it dominates.
    """

    shards: int
    rows_per_shard: int
    rows_per_part: int
    dimensions: int


SIZES = {
    "many small parts": Size(4_000, 1_000, 10, 32),
    "few large parts": Size(400, 60_000, 20_000, 256),
}


class SoakedJob:
    """A job's driver, which runs until it is stopped."""

    def __init__(self, folder: Path, output: str, size: Size, environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            folder: of its source, model and messages.
            output: path or URI.
            size: of its source and parts.
            environment: variables with which it finds its store.
        """
        folder.mkdir()
        # Sockets of Ray are in this folder, and paths of sockets are short.
        self._temporary = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
        self.output, self.log = output, folder / "log"
        _write_source(folder, size)
        job = ["--dataset", str(folder / "docs"), "--text", "text", "--output", output, "--max-tokens", "32"]
        job += ["--model", str(_write_model(folder / "model", size.dimensions))]
        argv = [sys.executable, "-m", "varve", "embed", *job, "--set", f"output.rows_per_part={size.rows_per_part}"]
        temporary = {"TMPDIR": str(self._temporary), "RAY_TMPDIR": str(self._temporary)}
        with self.log.open("ab") as log:
            variables = {**os.environ, **environment, **temporary}
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, env=variables)

    def stop(self) -> list[str]:
        """Stop it with SIGTERM; returns the temporary files that it leaves.

        Raises:
            AssertionError: it had ended before, or ends with another exit code than after a signal.
        """
        assert self.process.poll() is None, f"exit code {self.process.returncode}\n{self.log.read_text()[-4000:]}"
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(RUN_S)
        assert code in (1, _STOPPED), f"exit code {code}\n{self.log.read_text()[-4000:]}"
        left = [str(path.relative_to(self._temporary)) for path in self._temporary.rglob("*")]
        with suppress(OSError):
            self._temporary.rmdir()
        return left


def _write_source(folder: Path, size: Size) -> None:
    (folder / "docs").mkdir()
    texts = [text[:200] for _, text in islice(docstrings(), 5_000)]
    numbered = [f"{row}: {texts[row % len(texts)]}" for row in range(size.rows_per_shard)]
    pq.write_table(pa.table({"text": numbered}), folder / "first.parquet")
    for shard in range(size.shards):
        (folder / f"docs/{shard:05}.parquet").hardlink_to(folder / "first.parquet")


def _write_model(folder: Path, dimensions: int) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": dimensions, "intermediate_size": 2 * dimensions}
    config = AutoConfig.for_model("bert", **sizes, num_hidden_layers=_LAYERS, num_attention_heads=_HEADS)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder()).save_pretrained(folder)
    return folder
