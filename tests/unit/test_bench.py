"""The benchmark compares only times of correct vectors, and states the error of reduced precision."""

import time

import numpy as np
import pytest

from tests.bench.difference import compare
from tests.bench.peers import Rows, Setup, Transformers
from tests.bench.report import table
from tests.bench.results import Comparison, Row
from tests.bench.rounds import load, measure
from tests.bench.variants import OURS, REFERENCE
from tests.bench.worker import Session
from tests.models import RAGGED

TEXTS = RAGGED * 2
INT8 = "transformers, int8, sorted"


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
    names = [
        REFERENCE,
        OURS,
        "varve, all layers",
        "varve, CLS",
        "varve, layers <= 1",
        "transformers, sorted",
        INT8,
        *peers,
    ]
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


def test_reduced_precision_has_a_table_with_its_error_beside_varve_in_float32(comparison):
    reduced = next(row for row in comparison.rows if row.name == INT8)
    assert reduced.reduced
    assert 0.9 < reduced.difference.cosine < reduced.difference.mean_cosine < 1
    float32, below = table(comparison).split("Reduced precision")
    assert INT8 not in float32
    rows = [line for line in below.splitlines() if line.startswith("| varve") or INT8 in line]
    assert [line.split(" | ")[0] for line in rows] == ["| varve", f"| {INT8}"]
    assert f"{reduced.difference.relative:.1e} | {reduced.difference.mean_cosine:.6f}" in rows[1]


def test_reduced_precision_is_never_the_fastest_exact_peer():
    mine, peer = Row(OURS, [2.0], exact=True, ours=True), Row("peer", [3.0], exact=True)
    as_it_comes = Row("peer, default precision", [1.0], exact=True, reduced=True)
    bfloat16 = Row("varve, bfloat16", [0.5], ours=True, reduced=True)
    comparison = Comparison("tiny", 1, 1, [bfloat16, mine, as_it_comes, peer])
    assert comparison.ours() is mine
    assert comparison.fastest_peer() is peer
    line = next(line for line in table(comparison).splitlines() if line.startswith("| peer, default precision"))
    assert [cell.strip() for cell in line.split("|")[4:6]] == ["0.50", "2.00"]


def test_cosines_are_the_least_and_the_mean_of_the_rows():
    difference = compare(np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert difference.cosine == pytest.approx(0.5**0.5)
    assert difference.mean_cosine == pytest.approx((1 + 0.5**0.5) / 2)


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
