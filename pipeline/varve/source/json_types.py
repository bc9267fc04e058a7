"""Types of JSON values: the smallest type that holds all values of a column.

The inference of `datasets` crashes the process on some lists that begin with nulls and on objects nested ten thousand
deep, and it turns texts that look like dates into timestamps. Knows nothing of files. Invariants: a text is a text,
whatever it looks like; a column whose values have several types holds JSON texts.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from datasets import Features, Json, List, Value

from varve.source.json_files import replace_surrogates

_INT64 = range(-(2**63), 2**63)
_SCALARS = {str: "string", bool: "bool", type(None): "null"}


def infer_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> Features:
    """All keys of the rows as columns; those not in `columns` get the null type, since they may have any type."""
    names = map(replace_surrogates, dict.fromkeys(chain.from_iterable(rows)))
    needed = {name: _infer([replace_surrogates(row.get(name)) for row in rows]) for name in columns}
    return Features({name: needed.get(name, Value("null")) for name in names})


def _infer(values: Sequence[Any]) -> Any:
    """The feature that holds all of the values; null is of every type."""
    present = [value for value in values if value is not None]
    kinds = {float if type(value) is int else type(value) for value in present} or {type(None)}
    if len(kinds) > 1:
        return Json()
    kind = kinds.pop()
    if kind is dict:
        names = dict.fromkeys(chain.from_iterable(present))
        return {name: _infer([value.get(name) for value in present]) for name in names}
    if kind is list:
        return List(_infer(list(chain.from_iterable(present))))
    if kind is float:
        return Value("int64" if all(type(value) is int and value in _INT64 for value in present) else "float64")
    return Value(_SCALARS[kind])
