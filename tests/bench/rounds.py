"""Loads variants, compares their vectors with the reference, and times them in interleaved rounds.

Invariant: a variant is timed only after its vectors were compared. Deadlines are on time.monotonic(); a variant that
does not fit is left out with the reason.
"""

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.difference import compare
from tests.bench.peers import Setup
from tests.bench.results import Comparison, Row
from tests.bench.variants import FLOOR, OURS, REFERENCE, is_reduced
from tests.bench.worker import AbsentError, Remote, Session

CHECKED = {"cpu": 512, "cuda": 128}  # compared texts
ANY_LAYERS = ("varve, all layers", "varve, CLS", "varve, layers <= half", "varve, layers <= 1")

Start = Callable[[str, Setup], Session | Remote]


def measure(
    comparison: Comparison, texts: Sequence[str], sessions: dict[str, Any], rounds: int, deadline: float, *, half: bool
) -> None:
    """Compare the vectors of the variants, then time them in interleaved rounds.

    Args:
        comparison: receives the figures.
        texts: to encode.
        sessions: name → loaded session, with the reference and perhaps the floor.
        rounds: their number.
        deadline: of the last round, on time.monotonic().
        half: whether the variants run in half precision.

    Raises:
        AbsentError: there is no reference.
    """
    warmed_up = _check_vectors(comparison, texts, sessions, deadline, half=half)
    for turn in range(rounds):
        if time.monotonic() > deadline and turn:
            break
        if FLOOR in sessions:
            for product, rate in sessions[FLOOR].measure().items():
                comparison.floor.setdefault(product, []).append(rate)
        for row in warmed_up:
            if time.monotonic() > deadline and turn:
                break
            result = sessions[row.name].run()
            row.seconds.append(result.seconds)
            if result.encode_seconds is not None:
                row.more.setdefault("encoding s", []).append(result.encode_seconds)
            log(f"{comparison.title}: round {turn + 1}: {row.name}: {result.seconds:.2f} s")
    for row in warmed_up:
        row.peak_bytes = sessions[row.name].peak_bytes()


def _check_vectors(
    comparison: Comparison, texts: Sequence[str], sessions: dict[str, Any], deadline: float, *, half: bool
) -> list[Row]:
    """Run each variant once and compare a sample of its vectors; returns the rows of variants that fit into a round."""
    checked = sorted({at * len(texts) // CHECKED["cuda" if half else "cpu"] for at in range(CHECKED["cpu"])})
    checked = [at for at in checked if at < len(texts)]
    if REFERENCE not in sessions:
        msg = "the reference could not be loaded"
        raise AbsentError(msg)
    reference = sessions[REFERENCE]
    reference.use([texts[at] for at in checked])
    reference.run()
    expected = reference.vectors(range(len(checked))).reshape(len(checked), len(reference.layers()), -1)
    warmed_up: list[Row] = []
    round_s = 0.0
    for name in (name for name in sessions if name not in {REFERENCE, FLOOR}):
        if time.monotonic() > deadline:
            comparison.left_out[name] = "no time left"
            continue
        try:
            sessions[name].use(texts)
            seconds = sessions[name].run().seconds
            of_layers = expected[:, sessions[name].layers()].reshape(len(checked), -1)
            difference = compare(sessions[name].vectors(checked), of_layers)
        except AbsentError as e:
            comparison.left_out[name] = str(e)
            continue
        log(f"{comparison.title}: {name}: {seconds:.2f} s, {difference}")
        if warmed_up and round_s + seconds > deadline - time.monotonic():
            comparison.left_out[name] = "no time left"
            continue
        row = Row(name, difference=difference, exact=difference.is_exact(half=half), ours=name.startswith(OURS))
        row.whole, row.reduced = name not in ANY_LAYERS, is_reduced(name)
        round_s += seconds
        warmed_up.append(row)
        comparison.rows.append(row)
    return warmed_up


def load(
    names: Sequence[str], setup: Setup, start: Start, deadline: float, at_once: int = 1
) -> tuple[dict[str, Any], dict[str, str]]:
    """Load variants until half of the time is over; returns (name → session, name → reason for the others)."""
    half_time = (time.monotonic() + deadline) / 2

    def load_one(name: str) -> tuple[str, Any, str]:
        if time.monotonic() > half_time:
            return name, None, "no time left to load it"
        session = start(name, setup)
        session.deadline = half_time
        try:
            description = ", ".join(f"{key} {value}" for key, value in session.load().items())
        except AbsentError as e:
            session.close()
            return name, None, str(e)
        session.deadline = deadline
        log(f"{Path(setup.folder).name}: {name}: loaded ({description})")
        return name, session, ""

    with ThreadPoolExecutor(at_once) as pool:
        loaded = list(pool.map(load_one, names))
    sessions = {name: session for name, session, _ in loaded if session}
    return sessions, {name: reason for name, session, reason in loaded if not session}


def log(text: str) -> None:
    """Write a line with the time to stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
