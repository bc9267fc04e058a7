import pytest

from tests.probes import train


def test_files_beyond_memory_give_the_same_accuracy_as_memory(output):
    path = output()
    studies = [train(path, features=("cls_01",), **memory) for memory in ({}, {"memory": 1})]
    in_memory, in_files = (study.results[0].test.metrics["accuracy"].value for study in studies)
    assert in_memory == pytest.approx(in_files, abs=0.02)
