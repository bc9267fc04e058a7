"""Flows that read Parquet files with texts and write Parquet files with vectors, each run in its own process.

python -m tests.bench.flows NAME SOURCE TARGET MODEL

SOURCE is a folder of shards with the columns id and text; TARGET is a folder for files with the columns id and vector.
Peers follow their documentation. Daft 0.7 needs pyarrow < 26, which conflicts with the lock, so it runs in another
environment: python -m tests.bench.pipeline --python daft=PATH.
"""

import os
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROWS_PER_BATCH = 100  # as in Ray's documentation
BLOCKS = 8  # otherwise small files become one block, and one actor does all the work
MAX_TOKENS = 256  # of the model's sentence-transformers configuration


class _Encode:
    """A callable class for actors, as in Ray's documentation."""

    def __init__(self, model: str) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(model, device="cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["vector"] = self._model.encode(list(batch["text"]), show_progress_bar=False)
        del batch["text"]
        return batch


def ray_sentence_transformers(source: str, target: str, model: str, *, actors: int) -> None:
    """`ray.data.map_batches` with a pool of actors, over enough blocks for all actors.

    Ray gets one more logical CPU than there are cores: if actors hold all CPUs, no read can start and the run hangs.
    """
    import ray

    ray.init(num_cpus=len(os.sched_getaffinity(0)) + 1, log_to_driver=False)
    rows = ray.data.read_parquet(source).repartition(BLOCKS)
    pool = ray.data.ActorPoolStrategy(size=actors)
    vectors = rows.map_batches(_Encode, fn_constructor_args=(model,), batch_size=ROWS_PER_BATCH, compute=pool)
    vectors.write_parquet(target)


def datasets_map(source: str, target: str, model: str) -> None:
    """`datasets.Dataset.map` over batches."""
    from datasets import load_dataset

    # A new cache for each run: a second run would read the vectors of the first one from it.
    with TemporaryDirectory() as cache:
        rows = load_dataset("parquet", data_files=f"{source}/*.parquet", split="train", cache_dir=cache)
        vectors = rows.map(_Encode(model), batched=True, remove_columns=["text"])
        Path(target).mkdir()
        vectors.to_parquet(f"{target}/part.parquet")


def daft_embed_text(source: str, target: str, model: str) -> None:
    """Daft's `embed_text`."""
    import daft
    from daft.functions import embed_text

    vector = embed_text(daft.col("text"), provider="transformers", model=model)
    daft.read_parquet(f"{source}/*.parquet").with_column("vector", vector).exclude("text").write_parquet(target)


def encoder_alone(source: str, target: str, model: str) -> None:
    """Varve's encoder over the same texts in blocks, without Ray."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.bench.ours import Varve
    from tests.bench.peers import Setup

    rows = pq.read_table(source)
    encoder = Varve(Setup(model, MAX_TOKENS, "cpu"))
    vectors = encoder.encode(encoder.tokenize(rows["text"].to_pylist()))
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    Path(target).mkdir()
    pq.write_table(pa.table({"id": rows["id"], "vector": lists}), f"{target}/part.parquet")


def varve(source: str, target: str, model: str) -> None:
    """`varve embed` with a job file, which replaces this process."""
    job = {
        "source": {"dataset": source, "text": "text", "keep": ["id"]},
        "model": {"name": model, "max_tokens": MAX_TOKENS},
        "features": {"vector": {"pool": "mean"}},
        "output": {"path": target},
    }
    import json

    file = Path(f"{target}.yaml")
    file.write_text(json.dumps(job))  # JSON is YAML
    os.execv(sys.executable, [sys.executable, "-m", "varve", "embed", str(file), "--json"])


FLOWS = {
    "varve": varve,
    "encoder alone": encoder_alone,
    "ray.data, sentence-transformers, 2 actors": partial(ray_sentence_transformers, actors=2),
    "ray.data, sentence-transformers, 1 actor": partial(ray_sentence_transformers, actors=1),
    "datasets.map, sentence-transformers": datasets_map,
    "daft, embed_text": daft_embed_text,
}


if __name__ == "__main__":
    FLOWS[sys.argv[1]](*sys.argv[2:])
