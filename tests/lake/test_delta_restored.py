"""Whole runs whose Delta tables were taken back to an earlier version."""

import pytest
from deltalake import DeltaTable

from tests.finished_runs import finish_table
from tests.lake.backend_delta import Backend
from tests.lake.backends import rows
from varve import Job


@pytest.fixture
def backend(tmp_path) -> Backend:
    return Backend(str(tmp_path))


@pytest.fixture
def job(tiny, backend) -> Job:
    return Job.parse(
        {
            "source": {"table": backend.address, "text": "body", "key": "doc_id"},
            "model": {"name": tiny("bert")},
            "features": {"embedding": {"pool": "mean"}},
            "output": {"table": backend.features_address},
        }
    )


def keys_and_hashes(backend: Backend) -> list[tuple]:
    found = backend.read(backend.features_address)
    return sorted(zip(found["doc_id"].to_pylist(), found["text_hash"].to_pylist(), strict=True))


def test_restored_features_are_made_again_from_the_parts_of_the_run(backend, job):
    backend.create(rows(range(10)))
    finish_table(job)
    first = DeltaTable(backend.features_address.removeprefix("delta+")).version()
    backend.append(rows(range(10, 14)))
    backend.update(rows([3], "changed {}"))
    finish_table(job)
    expected = keys_and_hashes(backend)
    assert [key for key, _ in expected] == list(range(14))
    DeltaTable(backend.features_address.removeprefix("delta+")).restore(first)
    assert len(keys_and_hashes(backend)) == 10
    finish_table(job)
    assert keys_and_hashes(backend) == expected


def test_restored_source_takes_the_features_back(backend, job):
    backend.create(rows(range(10)))
    backend.append(rows(range(10, 14)))
    backend.update(rows([3], "changed {}"))
    finish_table(job)
    DeltaTable(backend.uri).restore(0)
    finish_table(job)
    restored = keys_and_hashes(backend)
    assert [key for key, _ in restored] == list(range(10))
    DeltaTable(backend.uri).restore(2)
    finish_table(job)
    assert [key for key, _ in keys_and_hashes(backend)] == list(range(14))
    assert [pair for pair in keys_and_hashes(backend) if pair[0] not in {3, *range(10, 14)}] == [
        pair for pair in restored if pair[0] != 3
    ]
