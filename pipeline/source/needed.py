"""JSON objects of which the columns that a job needs are read, whatever else each of them holds.

`datasets` casts every key to the types of the first file, and refuses the keys that this one does not have. Stands
alone because `datasets` exchanges `open` in the module of every builder that streams.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets.packaged_modules.json.json import Json


class NeededJson(Json):
    """The builder of JSON, which drops what its features don't name before it casts."""

    def _cast_table(self, pa_table: pa.Table, json_field_paths: Sequence[Any] = ()) -> pa.Table:
        needed = [name for name in pa_table.column_names if name in self.info.features]
        return super()._cast_table(pa_table.select(needed), json_field_paths=json_field_paths)
