"""Sets of row offsets of a fragment in the portable format of Roaring bitmaps, as Lance's commits take them.

A bitmap is a list of containers, one for each 65,536 offsets that has some: the cookie 12346 and the number of
containers (uint32), a key and a cardinality - 1 of each (uint16), its position in the bytes (uint32), and then the
containers: sorted uint16 values up to 4,096 of them, else 65,536 bits. All in little endian.
"""

import numpy as np
from numpy.typing import NDArray

_COOKIE = 12346  # a bitmap without run-length containers
_CONTAINER = 65536
_MAX_VALUES = 4096  # in a container that is a list


def encode_offsets(offsets: NDArray[np.int64]) -> bytes:
    """The bytes of a bitmap.

    Args:
        offsets: (N,) ascending, distinct, at least 0 and below 2^32.
    """
    keys, starts = np.unique(offsets // _CONTAINER, return_index=True)
    values = (offsets % _CONTAINER).astype("<u2")
    groups = np.split(values, starts[1:]) if len(keys) else []
    containers = [_container(group) for group in groups]
    counts = np.array([len(group) - 1 for group in groups], "<u2")
    header = 8 + 8 * len(keys)
    positions = header + np.cumsum([0, *(len(each) for each in containers)])[:-1]
    described = np.stack([keys.astype("<u2"), counts], axis=1)
    head = np.array([_COOKIE, len(keys)], "<u4").tobytes()
    return head + described.tobytes() + positions.astype("<u4").tobytes() + b"".join(containers)


def _container(values: NDArray[np.uint16]) -> bytes:
    if len(values) <= _MAX_VALUES:
        return values.tobytes()
    bits = np.zeros(_CONTAINER, np.uint8)
    bits[values] = 1
    return np.packbits(bits, bitorder="little").tobytes()
