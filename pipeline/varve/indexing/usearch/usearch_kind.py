"""What a USearch index stores per vector: its kinds, its distance, its size.

Knows nothing of files. A kind is the type of the stored values: f32, f16 or i8. i8 keeps only the direction of a
vector, so it exists for the cosine alone.
"""

from varve.errors import JobError
from varve.indexing.metric import Metric
from varve.indexing.target import Kind

CONNECTIVITY = 16  # edges of a node per level; twice as many on the lowest
EXPANSION_ADD = 128  # candidates while a vector is added
EXPANSION = "expansion_search"
_EXPANSIONS = (16, 32, 64, 128, 256, 512, 1024)
_VALUE_BYTES = {"i8": 1, "f16": 2, "f32": 4}  # the cheapest build first
_METRICS = {"cosine": "cos", "dot": "ip", "euclidean": "l2sq"}
_KEY_BYTES, _LEVEL_BYTES, _COUNT_BYTES, _SLOT_BYTES = 8, 2, 4, 4


def choose_kinds(wanted: str, metric: Metric, width: int) -> tuple[Kind, ...]:
    """The kinds that can be built.

    Args:
        wanted: f32, f16, i8, or auto for all.
        metric: how vectors are compared.
        width: dimensions of a vector.

    Raises:
        JobError: the wanted kind does not exist, or not for this metric.
    """
    names = [name for name in _VALUE_BYTES if name != "i8" or metric.name == "cosine"]
    if wanted != "auto" and wanted not in names:
        why = f"i8 keeps no lengths, which {metric.name} needs" if wanted == "i8" else "a kind is the type of a value"
        msg = f"kind: {wanted!r} is not allowed: {why}; expected auto or one of {', '.join(names)}"
        raise JobError(msg)
    settings = tuple({EXPANSION: expansion} for expansion in _EXPANSIONS)
    chosen = names if wanted == "auto" else [wanted]
    return tuple(Kind(name, bytes_per_vector(name, width), settings) for name in chosen)


def bytes_per_vector(kind: str, width: int) -> float:
    """Bytes of one vector in a file, with its key and its edges."""
    lowest = _COUNT_BYTES + 2 * CONNECTIVITY * _SLOT_BYTES
    higher = (_COUNT_BYTES + CONNECTIVITY * _SLOT_BYTES) / (CONNECTIVITY - 1)  # one vector of 16 is on the next level
    node = _KEY_BYTES + _LEVEL_BYTES + lowest + higher
    return width * _VALUE_BYTES[kind] + node + _LEVEL_BYTES  # levels are stored twice


def metric_name(metric: Metric) -> str:
    """USearch's name of a metric. Its cosine needs no vectors of length 1."""
    return _METRICS[metric.name]
