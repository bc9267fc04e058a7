"""Runs packs on a device: in several threads on a CPU, in one on a GPU, and in halves if memory runs out.

A lane is a thread that runs packs one after the other. A CPU has one lane per core, so that no barrier inside a layer
makes cores wait for each other; the last packs of a queue are split, so that all lanes finish at about the same time.
A GPU has one lane, which launches packs while another thread reads the results of earlier ones, so that the device
never waits for the host. Knows nothing of poolings and texts. Invariants: every window of a pack has vectors or a
reason why not; packs are split only where this keeps a row's bits, or because memory ran out, which is counted.
"""

import gc
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock, Semaphore
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from varve.encoder.memory_budget import keep_freed_memory
from varve.encoder.model.forward import Forward, Vectors
from varve.encoder.model.sparse_pooling import SparseRows
from varve.encoder.packing import Pack
from varve.encoder.results import Results
from varve.preprocessing.tokens import starts_of

_MIN_SPLIT_TOKENS = 128  # of a half: the time of smaller packs is dominated by reading the model's weights

RunPack = Callable[[Pack], Vectors]
Wait = Callable[[], None]
# Copies vectors to the host: (host vectors, function that waits until they can be read).
ToHost = Callable[[Vectors], tuple[Vectors, Wait]]


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PackExecutor:
    """The threads that run packs through one model."""

    def __init__(
        self,
        forward: RunPack,
        *,
        num_lanes: int,
        num_ahead: int,
        to_host: ToHost,
        make_fallback: Callable[[], RunPack] | None = None,
        max_pack_tokens: int | None = None,
        split_last: bool = False,
    ) -> None:
        """Start the lanes.

        Args:
            forward: runs a pack.
            num_lanes: threads; each uses one core for torch's own work.
            num_ahead: packs launched before the results of an earlier one are read; above 0 only with one lane.
            to_host: copies the vectors of `forward` to the host.
            make_fallback: makes the pass for windows that overflow in half precision; None in float32.
            max_pack_tokens: tokens that fit into the device's memory at once.
            split_last: split the last packs of a queue among the lanes; requires that a row has equal bits in any pack.
        """
        self._forward, self._to_host = forward, to_host
        self._make_fallback, self._fallback = make_fallback, None
        self._max_pack_tokens = max_pack_tokens
        self._num_lanes, self._split_last = num_lanes, split_last
        self._num_queued = 0
        self._last_read = 0.0
        self._lock = Lock()
        self._unread = Semaphore(num_lanes + num_ahead)
        self._pool = ThreadPoolExecutor(num_lanes, thread_name_prefix="lane")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader") if num_ahead else None
        self._limit_to_one_core()

    @classmethod
    def for_device(cls, device: torch.device, forward: Forward, threads: int, **options: Any) -> Self:
        """An executor with `threads` lanes on a CPU, or with one lane and a reader on a GPU."""
        keep_freed_memory()
        if device.type == "cuda":
            return cls(forward, num_lanes=1, num_ahead=2, to_host=_copy_to_host, **options)
        return cls(forward, num_lanes=threads, num_ahead=0, to_host=lambda vectors: (vectors, lambda: None), **options)

    def submit(self, packs: Sequence[Pack], results: Results) -> None:
        """Queue packs; their vectors go to `results`."""
        with self._lock:
            self._num_queued += len(packs)
        for pack in packs:
            self._pool.submit(self._run_queued, pack, results)

    def _limit_to_one_core(self) -> None:
        """Let torch use one core in each of these threads, and leave its setting for all other threads unchanged."""
        num_threads = torch.get_num_threads()
        pools = [self._pool] * self._num_lanes + ([self._reader] if self._reader else [])
        ready = Barrier(len(pools) + 1)

        def limit() -> None:
            torch.set_num_threads(1)
            # The first query in a thread fixes its number to the value set last by any thread: query it now.
            torch.get_num_threads()
            ready.wait()

        for pool in pools:
            pool.submit(limit)
        ready.wait()
        torch.set_num_threads(num_threads)

    def _run_queued(self, pack: Pack, results: Results) -> None:
        with self._lock:
            self._num_queued -= 1
            is_among_last = self._split_last and self._num_queued < self._num_lanes
        try:
            self._run(self._split_off_half(pack, results) if is_among_last else pack, results)
        except BaseException as e:  # noqa: BLE001 (raised in the thread that waits for the results)
            results.abort(e)

    def _split_off_half(self, pack: Pack, results: Results) -> Pack:
        """Queue one half of a pack for the next free lane and return the other; small packs stay whole."""
        if len(pack.windows) < 2 or pack.num_tokens < 2 * _MIN_SPLIT_TOKENS:
            return pack
        first, second = pack.halves()
        self.submit([second], results)
        return first

    def _run(self, pack: Pack, results: Results) -> None:
        """Run a pack, in halves if it does not fit into memory."""
        can_split = len(pack.windows) > 1
        if can_split and self._max_pack_tokens is not None and pack.num_tokens > self._max_pack_tokens:
            self._run_halves(pack, results)
        elif self._launch(pack, results):
            return
        elif can_split:
            self._max_pack_tokens = min(self._max_pack_tokens or pack.num_tokens, (pack.num_tokens + 1) // 2)
            self._run_halves(pack, results)
        else:
            reason = f"a window of {pack.num_tokens} tokens does not fit into the device's memory: lower max_tokens"
            results.fail(pack, reason)

    def _run_halves(self, pack: Pack, results: Results) -> None:
        results.count(splits=1)
        for half in pack.halves():
            self._run(half, results)

    def _launch(self, pack: Pack, results: Results) -> bool:
        """Run a pack and have its vectors read; False, with unused memory freed, if memory ran out."""
        self._unread.acquire()
        started, launched = time.perf_counter(), None
        try:
            launched = self._to_host(self._forward(pack))
        except torch.OutOfMemoryError:
            pass
        finally:
            if launched is None:
                self._unread.release()
        if launched is None:
            # Outside of the handler, whose traceback keeps the failed pass's tensors alive.
            self._free_memory()
        elif self._reader is None:
            self._read(pack, *launched, results, started)
        else:
            self._reader.submit(self._read, pack, *launched, results, started)
        return launched is not None

    def _free_memory(self) -> None:
        if self._reader is not None:
            self._reader.submit(lambda: None).result()  # wait until everything that was launched has been read
        gc.collect()
        torch.cuda.empty_cache()

    def _read(self, pack: Pack, vectors: Vectors, wait: Wait, results: Results, started: float) -> None:
        """Wait for a pack's vectors and store them."""
        try:
            wait()
            results.store(pack, vectors)
            if self._make_fallback is not None and len(places := _find_overflows(pack, vectors)):
                results.count(overflows=len(places))
                overflown = pack.select(places)
                results.store(overflown, self._get_fallback()(overflown))
            # With a reader, packs overlap: a pack's device time starts where that of the pack before it ended.
            started = max(started, self._last_read) if self._reader else started
            self._last_read = finished = time.perf_counter()  # used with a reader only, which is a single thread
            results.count(busy_s=finished - started)
            results.mark_done(len(pack.windows))
        except BaseException as e:  # noqa: BLE001 (raised in the thread that waits for the results)
            results.abort(e)
        finally:
            self._unread.release()

    def _get_fallback(self) -> RunPack:
        """The fallback pass, made when it is first needed."""
        assert self._make_fallback is not None
        with self._lock:
            self._fallback = self._fallback or self._make_fallback()
        return self._fallback


def _copy_to_host(vectors: Vectors) -> tuple[Vectors, Wait]:
    """Start copies from a GPU into pinned memory."""

    def copy(tensors: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        return {
            key: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            for key, tensor in tensors.items()
        }

    names = ("counts", "ids", "weights")
    sparse = {
        column: SparseRows(**copy({name: getattr(rows, name) for name in names}))
        for column, rows in vectors.sparse.items()
    }
    on_host = Vectors(copy(vectors.pooled), copy(vectors.tokens), copy(vectors.attentions), sparse)
    copied = torch.cuda.Event()
    copied.record()
    return on_host, copied.synchronize


def _find_overflows(pack: Pack, vectors: Vectors) -> NDArray[np.int64]:
    """Places in the pack of windows with a number that is not finite."""
    finite = np.ones(len(pack.windows), np.bool_)
    for pooled in vectors.pooled.values():
        units = _are_finite(pooled)
        finite &= (
            units if pack.chunk_counts is None else np.logical_and.reduceat(units, starts_of(pack.chunk_counts)[:-1])
        )
    for rows in vectors.sparse.values():
        windows = np.repeat(np.arange(len(finite)), rows.counts.numpy())
        finite[windows[~torch.isfinite(rows.weights).numpy()]] = False
    for hidden in vectors.tokens.values():
        finite &= np.logical_and.reduceat(_are_finite(hidden), pack.cu_seqlens[:-1])
    for weights in vectors.attentions.values():
        heads = len(weights) // int((pack.lengths**2).sum())
        starts = np.cumsum(heads * pack.lengths**2) - heads * pack.lengths**2
        finite &= np.logical_and.reduceat(torch.isfinite(weights).numpy(), starts)
    return np.flatnonzero(~finite)


def _are_finite(vectors_NH: torch.Tensor) -> NDArray[np.bool_]:
    """(N,) whether all numbers of each vector are finite.

    Tests the float32 sum of each vector, which sums of half-precision numbers cannot overflow: 30 times as fast as
    testing each number, which would take longer than a GPU's pass over all layers.
    """
    return torch.isfinite(vectors_NH.sum(1, dtype=torch.float32)).numpy()
