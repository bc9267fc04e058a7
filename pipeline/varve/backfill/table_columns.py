"""The columns of a feature table: which types it has, and which features it cannot hold.

Knows nothing of the formats. The refusals were measured: a float16 file is committed to Iceberg without an error, and
Spark and DuckDB then fail to read it; int8 and binary vectors lose their meaning in lists of integers.
"""

import pyarrow as pa

from varve.config.job import Job
from varve.encoder.feature_plan import FeaturePlan
from varve.errors import JobError
from varve.output.part_layout import PartLayout

_NOT_IN_TABLES = ("shard", "row")  # positions in the parts of a run, which later runs do not continue


def check_types(job: Job, feature_plan: FeaturePlan) -> None:
    """Refuse what readers of tables cannot read.

    Raises:
        JobError: there is something.
    """
    if job.output.dtype != "float32":
        msg = (
            f"output.dtype: {job.output.dtype} is not allowed with output.table: readers of these tables fail on it "
            "or lose its scale. Use float32, or output.path for a folder of Parquet files"
        )
        raise JobError(msg)
    forms = {column.form for column in feature_plan.columns}
    if "attentions" in forms or (len(job.source.text_columns) > 1 and forms & {"tokens", "late"}):
        what = "attentions" if "attentions" in forms else "tokens of sentence pairs"
        msg = f"features: {what} are not allowed with output.table: use output.path for a folder of Parquet files"
        raise JobError(msg)


def table_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of the table for those of a part: lists without a fixed length, without `shard` and `row`."""
    names = tuple(name for name in schema.names if name not in _NOT_IN_TABLES)
    stored = PartLayout(names, names[0]).apply(schema.empty_table()).schema
    return pa.schema([pa.field(each.name, _plain(each.type)) for each in stored])


def _plain(column: pa.DataType) -> pa.DataType:
    if pa.types.is_list(column) or pa.types.is_fixed_size_list(column):
        return pa.list_(pa.field("element", _plain(column.value_type)))
    return column
