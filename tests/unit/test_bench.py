"""The benchmark compares only times of correct vectors."""

import time

import numpy as np
import pytest

from tests.bench.encode import load, measure
from tests.bench.peers import Rows, Setup, Transformers
from tests.bench.report import Comparison, Row, compare, table
from tests.bench.variants import OURS, REFERENCE
from tests.bench.worker import Session
from tests.models import RAGGED

TEXTS = RAGGED * 2


class Cls(Transformers):
    """A fast peer with wrong vectors: the first token's instead of the mean."""

    def __init__(self, setup):
        super().__init__(setup, rows=64)

    def run(self, ids):
        return super().run([row[:1] for row in ids])


class Shuffled(Transformers):
    """A peer with correct vectors in the wrong order."""

    def __init__(self, setup):
        super().__init__(setup, rows=4)

    def encode(self, ids):
        return super().encode(ids)[::-1]


class Absent(Rows):
    def __init__(self, setup):  # noqa: ARG002
        import a_package_that_is_not_installed  # noqa: F401  # pyright: ignore[reportMissingImports]


@pytest.fixture(scope="module")
def comparison(tiny):
    setup = Setup(tiny("bert"), 64, "cpu")
    peers = [f"{__name__}:{peer.__name__}" for peer in (Cls, Shuffled, Absent)]
    names = [REFERENCE, OURS, "varve, all layers", "varve, CLS", "varve, layers <= 1", "transformers, sorted", *peers]
    sessions, left_out = load(names, setup, Session, deadline=float("inf"))
    result = Comparison("tiny", len(TEXTS), 1000, [], left_out=left_out)
    measure(result, TEXTS, sessions, 2, time.monotonic() + 600, half=False)
    return result


def test_correct_vectors_of_any_layers_are_exact(comparison):
    exact = {row.name for row in comparison.rows if row.exact}
    assert exact == {OURS, "varve, all layers", "varve, CLS", "varve, layers <= 1", "transformers, sorted"}
    assert all(len(row.seconds) == 2 for row in comparison.rows)


def test_wrong_peer_is_marked_and_is_not_the_fastest_exact_one(comparison):
    for row in comparison.rows:
        if not row.ours:
            row.seconds = [1.0] if row.exact else [1e-9]
    assert comparison.fastest_peer().name == "transformers, sorted"
    lines = [line for line in table(comparison).splitlines() if "Cls" in line or "Shuffled" in line]
    assert len(lines) == 2
    assert all("inexact" in line for line in lines)


def test_peer_without_its_package_is_left_out_with_the_reason(comparison):
    assert "a_package_that_is_not_installed" in comparison.left_out[f"{__name__}:Absent"]
    assert "left out" in table(comparison)


def test_nan_missing_or_different_vectors_are_not_exact():
    expected = np.ones((3, 4), np.float32)
    assert compare(expected, expected).is_exact()
    assert not compare(expected[:2], expected).is_exact()
    assert not compare(np.where(np.eye(3, 4), np.nan, expected), expected).is_exact()
    assert not compare(np.where(np.eye(3, 4), np.nan, expected), expected).is_exact(half=True)
    assert not compare(expected + 1e-4, expected).is_exact()


def test_ratios_are_medians_of_the_ratios_within_a_round():
    mine, peer = Row(OURS, [1.0, 3.0, 3.0], exact=True, ours=True), Row("peer", [2.0, 6.0, 2.0], exact=True)
    floor = {"256 tokens, linear": [20.0, 5.0, 5.0], "512 tokens, linear": [10.0, 10.0, 5.0], "8 cubed": [40.0] * 3}
    comparison = Comparison("tiny", 1, 1, [mine, peer], operations=20, floor=floor)
    assert peer.times(mine) == 2.0
    assert comparison.floor_seconds() == [1.0, 2.0, 4.0]
    assert comparison.floor_seconds("cubed") == [0.5] * 3
    ours, others = (
        line.split("|") for line in table(comparison).splitlines() if line.startswith(("| varve", "| peer"))
    )
    assert [cell.strip() for cell in ours[4:6]] == ["1.00", "100%"]
    assert [cell.strip() for cell in others[4:6]] == ["2.00", "50%"]
