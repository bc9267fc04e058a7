"""Damage in the footer of a part is found, although the table of its values is unchanged."""

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
    finished = manifest.read_manifest(storage)
    assert finished is not None
    return storage, finished.parts[0]


def test_undamaged_part_has_no_failures(written):
    assert not any(check_part(*written).values())


@pytest.mark.parametrize("pool", [b'"pool": "maxx"', b'"pool": "mean!'])
def test_changed_footer_is_a_checksum_failure(written, pool, tmp_path):
    path = tmp_path / written[1].name
    path.write_bytes(path.read_bytes().replace(b'"pool": "mean"', pool))
    assert written[1].name in check_part(*written)["checksums"][0]


def test_damaged_footer_without_a_recorded_hash_raises_no_exception(written, tmp_path):
    storage, part = written
    path = tmp_path / part.name
    content = path.read_bytes()
    older = replace(part, footer_sha256=None)
    assert not any(check_part(storage, older).values())
    failed = set()
    for at in range(part.data_bytes, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        failed |= {name for name, failures in check_part(storage, older).items() if failures}
    assert "checksums" in failed


def test_writer_and_reader_of_a_part_make_the_same_record(written):
    storage, part = written
    (again,) = manifest.read_parts(storage, manifest.committed(storage))
    assert again == part
