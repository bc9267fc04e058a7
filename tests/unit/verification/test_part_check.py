"""A part against its record: damage in its footer, which no value of the table shows."""

from dataclasses import replace

import numpy as np
import pytest

from tests.outputs import column, write_output
from varve.output import manifest
from varve.output.part_file import Part
from varve.storage.object_store import Storage
from varve.verification.part_check import check_part

UNIT = {column("e", 4, pool="mean", normalize=True): np.full((3, 4), 0.5, np.float32)}


@pytest.fixture
def written(tmp_path) -> tuple[Storage, Part]:
    storage = Storage(write_output(tmp_path, UNIT, {"id": [1, 2, 3]}))
    made = manifest.read_manifest(storage)
    assert made is not None
    return storage, made.parts[0]


def test_part_that_is_as_it_was_written_has_no_failures(written):
    assert not any(check_part(*written).values())


@pytest.mark.parametrize("pool", [b'"pool": "maxx"', b'"pool": "mean!'])
def test_footer_that_says_something_else_is_told(written, pool, tmp_path):
    path = tmp_path / written[1].name
    path.write_bytes(path.read_bytes().replace(b'"pool": "mean"', pool))
    assert written[1].name in check_part(*written)["checksums"][0]


def test_footer_whose_record_has_no_hash_of_it_ends_in_no_exception(written, tmp_path):
    storage, part = written
    path = tmp_path / part.name
    content = path.read_bytes()
    older = replace(part, footer_sha256=None)
    assert not any(check_part(storage, older).values())
    told = set()
    for at in range(part.data_bytes, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        told |= {name for name, failures in check_part(storage, older).items() if failures}
    assert "checksums" in told


def test_footer_is_hashed_alike_by_its_writer_and_by_those_who_go_on(written):
    storage, part = written
    (again,) = manifest.read_parts(storage, manifest.committed(storage))
    assert again == part
