"""Time, memory and page size of `varve report` for a large output: `python -m tests.bench.report_page FOLDER`.

The output is made without a model, 300 MB a part and 18 GB for 2,000,000 rows: one vector column per layer, in which
each class is a direction with noise, and a kept text and label. All parts hold the vectors of the same rows, each part
in an order of its own. The command runs in a process of its own, whose peak memory is measured.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from tests.outputs import PROVENANCE, column, make_manifest
from varve.encoder.feature_plan import FeaturePlan
from varve.output.manifest import publish
from varve.output.part_file import Part, write_part
from varve.output.schema import feature_arrays, output_schema
from varve.ranges import Range
from varve.storage.object_store import Storage

WIDTH, LAYERS, CLASSES = 384, 7, 12
ROWS_PER_PART = 32_768


def main() -> None:
    """Make the output if the folder has none, and write its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--color", default="label")
    arguments = parser.parse_args()
    if not (Path(arguments.folder) / "_varve/manifest.json").exists():
        began = time.perf_counter()
        make_output(arguments.folder, arguments.rows)
        sys.stdout.write(f"made in {time.perf_counter() - began:.0f} s\n")
    command = [sys.executable, "-m", "varve", "report", arguments.folder, "--color", arguments.color, "--json"]
    began = time.perf_counter()
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    seconds = time.perf_counter() - began
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    page_bytes = Path(found["report"]).stat().st_size
    read = sum(file.stat().st_size for file in Path(arguments.folder, "data").iterdir())
    sys.stdout.write(
        f"{found['num_rows']:,} rows, {read / 1e9:.1f} GB, {os.cpu_count()} cores: {seconds:.1f} s, peak "
        f"{peak_bytes / 1e9:.2f} GB, page {page_bytes / 1e6:.2f} MB, {found['num_sampled']:,} rows sampled\n"
    )


def make_output(folder: str, rows: int) -> None:
    """Write the parts and the manifest of an output."""
    random = np.random.default_rng(0)
    columns = tuple(column(f"cls_{layer:02d}", WIDTH, layer=layer) for layer in range(LAYERS))
    plan = FeaturePlan(columns, LAYERS, LAYERS, special_tokens=False)
    kept = pa.schema({"text": pa.string(), "label": pa.string()})
    schema = output_schema(plan, kept, pairs=False, metadata=PROVENANCE)
    storage, parts = Storage(folder), []
    centres = random.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    classes = random.integers(CLASSES, size=ROWS_PER_PART)
    noise = random.normal(size=(ROWS_PER_PART, WIDTH)).astype(np.float32)
    for start in range(0, rows, ROWS_PER_PART):
        stop = min(start + ROWS_PER_PART, rows)
        parts.append(_write(storage, plan, schema, Range(0, start, stop), centres, classes, noise))
    storage.create("_varve/job.json", json.dumps({"fingerprint": PROVENANCE["fingerprint"]}).encode())
    publish(storage, make_manifest(storage, PROVENANCE, rows, 0, parts))


def _write(
    storage: Storage, plan: FeaturePlan, schema: pa.Schema, where: Range, centres: np.ndarray, classes: np.ndarray,
    noise: np.ndarray,
) -> Part:  # fmt: skip
    """One part: the rows of the first one in another order."""
    rows = where.num_rows
    order = (np.arange(rows) + where.start // 7) % ROWS_PER_PART
    labels = classes[order]
    values = {
        each.name: centres[labels] * (0.2 + 0.1 * layer) + np.roll(noise[order], layer, axis=1)
        for layer, each in enumerate(plan.columns)
    }
    arrays = feature_arrays(plan, values, np.ones(rows, np.bool_), pairs=False)
    tokens = (8 + (np.arange(where.start, where.stop) * 2_654_435_761 % 121)).astype(np.int32)
    table = pa.table(
        {
            "text": [f"text {row} of class {label}" for row, label in enumerate(labels, where.start)],
            "label": [f"class {label}" for label in labels],
            **arrays,
            "num_tokens": tokens,
            "truncated": tokens == 128,
            "error": pa.nulls(rows, pa.string()),
            "shard": np.zeros(rows, np.int32),
            "row": np.arange(where.start, where.stop),
        },
        schema=schema,
    )
    return write_part(storage, where, table, PROVENANCE["fingerprint"])


if __name__ == "__main__":
    main()
