"""The pack executor with test passes whose vectors identify their window."""

import ctypes
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from varve.config.feature import Feature
from varve.encoder.feature_columns import plan_features
from varve.encoder.feature_plan import ModelShape
from varve.encoder.model.forward import Vectors
from varve.encoder.pack_executor import PackExecutor
from varve.encoder.packing import Pack
from varve.encoder.results import Results

SHAPE = ModelShape(num_layers=1, hidden_size=2, num_heads=1, num_labels=0, has_pooler=False)
PLAN = plan_features({"mean": Feature(pool="mean"), "tokens": Feature(pool="tokens")}, SHAPE, dtype="float32")


def first_ids(pack: Pack) -> Vectors:
    """A pass whose pooled vectors are the first token id of each window, and whose token vectors are the token's id."""
    ids = torch.from_numpy(pack.input_ids).float()
    return Vectors({("mean", 1): ids[pack.cu_seqlens[:-1]][:, None].repeat(1, 2)}, {1: ids[:, None].repeat(1, 2)})


def without_copy(vectors: Vectors):
    return vectors, lambda: None


def windows(*lengths: int) -> Pack:
    return Pack.of_windows([np.full(length, at, np.int32) for at, length in enumerate(lengths)])


def run(pack: Pack, forward, *, packs: int = 1, **options) -> Results:
    """The results of a pack, split into `packs` packs."""
    executor = PackExecutor(forward, **{"num_lanes": 1, "num_ahead": 0, "to_host": without_copy, **options})
    results = Results(PLAN, PLAN.pooled, pack.lengths, SHAPE)
    cuts = np.array_split(np.arange(len(pack.windows)), packs)
    executor.submit([pack.select(some) for some in cuts], results)
    results.wait()
    return results


def assert_every_window_has_its_own(results: Results, pack: Pack) -> None:
    assert results.vectors.pooled["mean", 1][:, 0].tolist() == pack.windows.tolist()
    assert results.vectors.tokens[1][:, 0].tolist() == pack.input_ids.tolist()


@pytest.mark.parametrize(("num_lanes", "num_ahead"), [(1, 0), (3, 0), (1, 1), (1, 4)])
def test_each_window_has_its_own_vectors_with_any_number_of_lanes(num_lanes, num_ahead):
    pack = windows(1, 1, 2, 3, 5, 8, 13)
    results = run(pack, first_ids, packs=7, num_lanes=num_lanes, num_ahead=num_ahead)
    assert_every_window_has_its_own(results, pack)


def test_the_last_packs_of_a_queue_are_split_among_the_lanes():
    ran = []
    both_started = threading.Barrier(2)

    def forward(pack):
        if not ran:
            both_started.wait(10)  # the other lane has the other half
        ran.append(pack.num_tokens)
        return first_ids(pack)

    pack = windows(*[64] * 64)
    results = run(pack, forward, packs=4, num_lanes=2, split_last=True)
    assert_every_window_has_its_own(results, pack)
    assert sum(ran) == pack.num_tokens
    assert ran.count(1024) == 2  # while as many packs wait as there are lanes, they stay whole
    assert min(ran) >= 128


def test_packs_are_launched_ahead_of_an_unread_one_up_to_the_limit():
    launched, limit_reached = [], threading.Event()

    def forward(pack):
        launched.append(int(pack.windows[0]))
        if len(launched) == 3:
            limit_reached.set()
        return first_ids(pack)

    seen = {}

    def to_host(vectors):
        window = int(vectors.pooled["mean", 1][0, 0])

        def wait():
            assert limit_reached.wait(10)
            seen[window] = list(launched)

        return vectors, wait

    pack = windows(*[1] * 6)
    executor = PackExecutor(forward, num_lanes=1, num_ahead=2, to_host=to_host)
    results = Results(PLAN, PLAN.pooled, pack.lengths, SHAPE)
    executor.submit([pack.select(np.array([window])) for window in range(6)], results)
    results.wait()
    assert seen[0] == [0, 1, 2]  # the other packs wait until it is read
    assert list(seen) == [0, 1, 2, 3, 4, 5]
    assert_every_window_has_its_own(results, pack)


@pytest.mark.parametrize("num_ahead", [0, 1])
def test_a_pack_that_exhausts_memory_is_split_until_it_fits(num_ahead):
    sizes = []

    def small_device(pack):
        sizes.append(pack.num_tokens)
        if pack.num_tokens > 10:
            raise torch.OutOfMemoryError
        return first_ids(pack)

    pack = windows(1, 2, 3, 4, 5, 6, 7)
    results = run(pack, small_device, num_ahead=num_ahead)
    assert_every_window_has_its_own(results, pack)
    assert results.counts.splits >= sum(size > 10 for size in sizes) > 0
    assert not results.reasons


def test_after_memory_ran_out_packs_are_split_before_they_fail_again():
    failures = []

    def small_device(pack):
        if pack.num_tokens > 8:
            failures.append(pack.num_tokens)
            raise torch.OutOfMemoryError
        return first_ids(pack)

    pack = windows(*[4] * 8)
    results = run(pack, small_device, packs=2)
    assert_every_window_has_its_own(results, pack)
    assert failures == [16]


def test_a_window_that_does_not_fit_alone_fails_without_affecting_others():
    def tiny_device(pack):
        if pack.num_tokens > 5:
            raise torch.OutOfMemoryError
        return first_ids(pack)

    pack = windows(1, 2, 9)
    results = run(pack, tiny_device)
    assert list(results.reasons) == [2]
    assert "9 tokens" in results.reasons[2]
    assert results.vectors.pooled["mean", 1][:2, 0].tolist() == [0, 1]
    assert np.isnan(results.vectors.pooled["mean", 1][2]).all()


@pytest.mark.parametrize("where", ["pooled", "tokens"])
@pytest.mark.parametrize("num_ahead", [0, 1])
@pytest.mark.parametrize("bad", [[float("inf")] * 2, [float("inf"), -float("inf")], [float("nan"), 1.0]], ids=str)
def test_only_windows_that_overflow_are_run_again_and_counted(where, num_ahead, bad):
    again = []

    def half(pack):
        vectors = first_ids(pack)
        over = torch.from_numpy(np.isin(pack.windows, [1, 3]))
        if where == "pooled":
            vectors.pooled["mean", 1][over] = torch.tensor(bad)
        else:
            vectors.tokens[1][torch.from_numpy(pack.cu_seqlens[:-1])[over]] = torch.tensor(bad)
        return vectors

    def wide(pack):
        again.append(pack.windows.tolist())
        return first_ids(pack)

    pack = windows(1, 1, 2, 2, 3)
    results = run(pack, half, make_fallback=lambda: wide, num_ahead=num_ahead)
    assert_every_window_has_its_own(results, pack)
    assert again == [[1, 3]]
    assert results.counts.overflows == 2


@pytest.mark.parametrize("num_ahead", [0, 1])
def test_an_error_in_a_lane_reaches_the_caller(num_ahead):
    def broken(_pack):
        msg = "device lost"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="device lost"):
        run(windows(1, 2), broken, num_ahead=num_ahead)


@pytest.mark.parametrize("num_ahead", [0, 1])
def test_an_error_while_results_are_read_reaches_the_caller_and_the_next_call_succeeds(num_ahead):
    broken = [True]

    def to_host(vectors):
        def wait():
            if broken:
                broken.pop()
                msg = "device lost"
                raise RuntimeError(msg)

        return vectors, wait

    pack = windows(1, 2, 3)
    executor = PackExecutor(first_ids, num_lanes=1, num_ahead=num_ahead, to_host=to_host)
    for _ in range(4):  # more than the limit
        results = Results(PLAN, PLAN.pooled, pack.lengths, SHAPE)
        failed = bool(broken)
        executor.submit([pack], results)
        if failed:
            with pytest.raises(RuntimeError, match="device lost"):
                results.wait()
        else:
            results.wait()
            assert_every_window_has_its_own(results, pack)


def mkl_threads() -> int:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so")).MKL_Get_Max_Threads()


def test_matrix_products_of_a_lane_use_one_core_and_other_threads_are_unchanged():
    before = mkl_threads()
    seen = []

    def forward(pack):
        seen.append((torch.get_num_threads(), mkl_threads()))
        return first_ids(pack)

    run(windows(1, 2, 3, 4), forward, packs=4, num_lanes=2)
    assert set(seen) == {(1, 1)}
    assert mkl_threads() == before


def test_torch_threads_outside_of_the_lanes_are_unchanged():
    before = torch.get_num_threads()
    run(windows(1, 2), first_ids, num_lanes=2)
    assert torch.get_num_threads() == before
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [before]
