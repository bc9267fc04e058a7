"""Peak memory of the driver for 20,000, 50,000 and 100,000 short rows.

python -m tests.bench.memory
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from varve.cli.corpus import model_folder

ROWS = (20_000, 50_000, 100_000)
SHARDS = 4
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def peak_bytes(argv: list[str]) -> int:
    """Run a command; returns the largest resident set of its process, without its children."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status, peak = Path(f"/proc/{process.pid}/status"), 0
    while process.poll() is None:
        lines = status.read_text().splitlines() if status.exists() else []
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.1)
    if process.returncode:
        msg = f"{argv} exited with code {process.returncode}"
        raise RuntimeError(msg)
    return peak


def main() -> None:
    """Run the sizes in turn and print a table."""
    sys.stdout.write("| rows | peak memory of the driver |\n| --- | --- |\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model("bert", **TINY)).save_pretrained(folder / "model")
        AutoTokenizer.from_pretrained(model_folder()).save_pretrained(folder / "model")
        for rows in ROWS:
            (folder / f"docs{rows}").mkdir()
            for shard in range(SHARDS):
                table = pa.table({"text": [f"short row {row}" for row in range(rows // SHARDS)]})
                pq.write_table(table, folder / f"docs{rows}/{shard}.parquet")
            job = ["--dataset", f"{folder}/docs{rows}", "--text", "text", "--model", f"{folder}/model"]
            more = ["--output", f"{folder}/out{rows}", "--set", "output.rows_per_part=1000"]
            peak = peak_bytes([sys.executable, "-m", "varve", "embed", *job, *more])
            sys.stdout.write(f"| {rows:,} | {peak / 1e6:.0f} MB |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
