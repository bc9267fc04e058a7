"""An object as a file: positions and sizes that a damaged file names."""

import io

import pytest

from varve.output.parquet_footer import read_footer_sizes
from varve.storage.object_file import ObjectFile
from varve.storage.object_store import Storage

CONTENT = b"PAR1 and a footer"


def open_file(content: bytes) -> ObjectFile:
    storage = Storage("memory://object-file")
    storage.put("object", content)
    return ObjectFile(storage, "object", len(content))


def test_position_before_the_start_is_refused_as_in_other_files():
    file = open_file(CONTENT)
    for offset, whence in ((-1, io.SEEK_SET), (-len(CONTENT) - 1, io.SEEK_END), (-1, io.SEEK_CUR)):
        with pytest.raises(ValueError, match="before the start"):
            file.seek(offset, whence)
    file.seek(-6, io.SEEK_END)
    assert file.read() == b"footer"


def test_footer_that_is_longer_than_its_file_is_damaged():
    with pytest.raises(ValueError, match="its footer is damaged"):
        read_footer_sizes(open_file(CONTENT + (10**6).to_bytes(4, "little") + b"PAR1"))
