"""Feature columns inside a user's own Ray program: no parts and no manifest; rows and their order are Ray's."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from varve.config.feature import Feature
from varve.config.feature_shorthand import parse_features
from varve.config.model import NO_WINDOWS_OF_PAIRS, Model, Windows
from varve.encoder.encoder import Encoder
from varve.engine.ray_tasks import TWO_CALLS
from varve.errors import JobError
from varve.output.schema import output_schema
from varve.output.token_pooling import pool_tokens
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.process_state import silence_transformers
from varve.workers.featurize import featurize

# Columns that only rows of a part need.
_PART_COLUMNS = frozenset({"shard", "row"})


def features(
    dataset: Dataset,
    *,
    text: str | tuple[str, str],
    model: str | Model,
    features: Mapping[str, Feature | str] | None = None,
    output_dtype: str = "float32",
    replicas: int = 1,
    batch_rows: int = 1024,
) -> Dataset:
    """Add feature columns to a Ray dataset, inside the user's own Ray program.

    There are no parts, ranges or manifest: rows and their order are Ray's. The columns `num_tokens`, `truncated` and
    `error` are added too. If the dataset already has one of these columns, the first batch fails with a JobError inside
    Ray's error.

    Args:
        dataset: has the text column(s).
        text: name of the text column, or of two columns for sentence pairs.
        model: Hub id, local folder, or the model section of a job.
        features: name → definition or its short form; by default what the checkpoint declares, else the mean of the
            last layer.
        output_dtype: float32, float16, int8 or binary.
        replicas: number of actors; each takes one GPU if the cluster has GPUs.
        batch_rows: rows that are encoded together.

    Raises:
        JobError: the model section cuts windows, which sentence pairs do not support.
    """
    spec = Model(name=model) if isinstance(model, str) else model
    columns = (text,) if isinstance(text, str) else text
    if len(columns) > 1 and isinstance(spec.long_text, Windows):
        raise JobError(NO_WINDOWS_OF_PAIRS)
    threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // replicas)
    return dataset.map_batches(
        _FeatureColumns,
        fn_constructor_args=(spec, parse_features(features) if features else None, columns, output_dtype, threads),
        batch_size=batch_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=replicas, **TWO_CALLS),
        num_gpus=1 if ray.cluster_resources().get("GPU", 0) else 0,
    )


class _FeatureColumns:
    """Adds feature columns to the batches of a Ray dataset."""

    def __init__(
        self,
        model: Model,
        features: dict[str, Feature] | None,
        text_columns: Sequence[str],
        output_dtype: str,
        threads: int,
    ) -> None:
        """Load the model."""
        silence_transformers()
        self._encoder = Encoder(model, features, output_dtype=output_dtype, threads=threads)
        self._text_columns = text_columns

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode a batch as one block. Two threads may call it, so that the next batch waits in the encoder."""
        pairs = len(self._text_columns) > 1
        schema = output_schema(self._encoder.feature_plan, pa.schema([]), pairs=pairs)
        _check_names(batch.column_names, set(schema.names) - _PART_COLUMNS)
        blocks = tokenize_blocks(self._encoder.tokenizer, batch, self._text_columns, max(1, len(batch)))
        result, _, _ = featurize(self._encoder, batch, blocks, schema=schema, shard=0, start=0, pairs=pairs)
        result = pool_tokens(result, self._encoder.feature_plan.token_poolings)
        added = result.drop_columns(list(_PART_COLUMNS))
        return pa.table([*batch.columns, *added.columns], schema=pa.schema([*batch.schema, *added.schema]))


def _check_names(present: Sequence[str], added: set[str]) -> None:
    for name in present:
        if name in added:
            msg = (
                f"features: the dataset already has a column {name!r}, and a column of that name would be added. Drop "
                "or rename it first: dataset.drop_columns or dataset.rename_columns"
            )
            raise JobError(msg)
