"""Packs on a device: how many run at once, who waits for whom, and what happens to one that does not fit.

A lane is a thread that runs packs one after the other. A CPU has a lane for each core, each with one pack at a time:
nothing has to meet at a barrier inside a layer, and the last packs of a queue are cut, so that all lanes end together.
A GPU has one lane, which launches packs while another thread reads the results of those before, so that the device
never waits for the host. Knows nothing of poolings and texts. Invariants: every window of a pack is kept or told why
it is not; a pack is cut where memory runs out, which is counted, and at the end of a queue: a row has its bits in any.
"""

import gc
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, Lock, Semaphore
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from varve.encoder.memory_budget import keep_freed_memory
from varve.encoder.model.forward import Forward, Vectors
from varve.encoder.packing import Pack
from varve.encoder.results import Results

_LEAST_TOKENS = 128  # of a pack that was cut for another lane: smaller ones wait for their weights


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Brings vectors to the host: (the vectors there, what to call before they are read).
ToHost = Callable[[Vectors], tuple[Vectors, Callable[[], None]]]


@dataclass(frozen=True, slots=True)
class _Launched:
    """A pack whose vectors are on their way to the host."""

    pack: Pack
    vectors: Vectors
    wait: Callable[[], None]
    results: Results
    began: float


class PackExecutor:
    """The threads that run packs through one model."""

    def __init__(
        self,
        forward: Callable[[Pack], Vectors],
        *,
        lanes: int,
        late_packs: int,
        to_host: ToHost,
        rescue: Callable[[], Callable[[Pack], Vectors]] | None = None,
        most_tokens: int | None = None,
        cut_last: bool = False,
    ) -> None:
        """Start the lanes.

        Args:
            forward: runs a pack.
            lanes: threads; each has one core for torch's own work.
            late_packs: that may wait behind the one that is read; above 0 only with one lane.
            to_host: brings what `forward` gives to the host.
            rescue: gives the pass for windows whose numbers overflow in half precision; None in float32.
            most_tokens: that fit into the device's memory at once.
            cut_last: share the last packs of a queue among the lanes, for a row has the same bits in any pack.
        """
        self._forward, self._to_host = forward, to_host
        self._rescue, self._rescuer = rescue, None
        self._most_tokens = most_tokens
        self._lanes, self._cut_last = lanes, cut_last
        self._waiting = 0
        self._read_at = 0.0
        self._lock = Lock()
        self._unread = Semaphore(lanes + late_packs)
        self._pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader") if late_packs else None
        self._give_each_a_core()

    @classmethod
    def on(cls, device: torch.device, forward: Forward, threads: int, **more: Any) -> Self:
        """The lanes of a device: a CPU's threads, or a GPU's one with its results read behind it."""
        keep_freed_memory()
        if device.type == "cuda":
            return cls(forward, lanes=1, late_packs=2, to_host=_copy_to_host, **more)
        return cls(forward, lanes=threads, late_packs=0, to_host=_here, **more)

    def submit(self, packs: Sequence[Pack], results: Results) -> None:
        """Queue packs; what they give arrives in `results`."""
        with self._lock:
            self._waiting += len(packs)
        for pack in packs:
            self._pool.submit(self._take, pack, results)

    def _give_each_a_core(self) -> None:
        """One core to a thread for torch's own work; torch's number for all other threads stays what it was."""
        before = torch.get_num_threads()
        pools = [self._pool] * self._lanes + ([self._reader] if self._reader else [])
        ready = Barrier(len(pools) + 1)

        def settle() -> None:
            torch.set_num_threads(1)
            # A thread's first look takes the number that was set last, by whomever: look while it is ours.
            torch.get_num_threads()
            ready.wait()

        for pool in pools:
            pool.submit(settle)
        ready.wait()
        torch.set_num_threads(before)

    def _take(self, pack: Pack, results: Results) -> None:
        with self._lock:
            self._waiting -= 1
            among_last = self._cut_last and self._waiting < self._lanes
        try:
            self._run(self._share(pack, results) if among_last else pack, results)
        except BaseException as e:  # noqa: BLE001 (it belongs to the caller's thread)
            results.abort(e)

    def _share(self, pack: Pack, results: Results) -> Pack:
        """Half of a pack, the other half queued for whichever lane is free first; all of it where it is small."""
        if len(pack.windows) < 2 or pack.num_tokens < 2 * _LEAST_TOKENS:
            return pack
        pack, rest = pack.halves()
        self.submit([rest], results)
        return pack

    def _run(self, pack: Pack, results: Results) -> None:
        """Launch a pack, in halves where memory is short."""
        many = len(pack.windows) > 1
        if many and self._most_tokens is not None and pack.num_tokens > self._most_tokens:
            self._run_halves(pack, results)
        elif self._launch(pack, results):
            pass
        elif many:
            self._most_tokens = min(self._most_tokens or pack.num_tokens, (pack.num_tokens + 1) // 2)
            self._run_halves(pack, results)
        else:
            results.fail(
                pack, f"a window of {pack.num_tokens} tokens does not fit into the device's memory: lower max_tokens"
            )

    def _run_halves(self, pack: Pack, results: Results) -> None:
        results.count(splits=1)
        for half in pack.halves():
            self._run(half, results)

    def _launch(self, pack: Pack, results: Results) -> bool:
        """Run a pack, and have it read; False if memory ran out, when all that could be freed is free."""
        self._unread.acquire()
        began, launched = time.perf_counter(), None
        try:
            launched = _Launched(pack, *self._to_host(self._forward(pack)), results, began)
        except torch.OutOfMemoryError:
            pass
        finally:
            if launched is None:
                self._unread.release()
        if launched is None:
            # Outside of the handler, which would hold the failed pass's tensors by its traceback.
            self._free_memory()
        elif self._reader is None:
            self._read(launched)
        else:
            self._reader.submit(self._read, launched)
        return launched is not None

    def _free_memory(self) -> None:
        if self._reader is not None:
            self._reader.submit(lambda: None).result()  # all that was launched has been read
        gc.collect()
        torch.cuda.empty_cache()

    def _read(self, launched: _Launched) -> None:
        """Wait for a pack's vectors and keep them."""
        try:
            self._keep(launched)
        except BaseException as e:  # noqa: BLE001 (whoever waits for the results raises it)
            launched.results.abort(e)
        finally:
            self._unread.release()

    def _keep(self, launched: _Launched) -> None:
        pack, results = launched.pack, launched.results
        launched.wait()
        results.keep(pack, launched.vectors)
        if self._rescue is not None and len(over := _overflown(pack, launched.vectors)):
            results.count(overflows=len(over))
            again = pack.select(over)
            results.keep(again, self._rescuing()(again))
        # Packs that are read late overlap: the device's time starts where that of the pack before ended.
        since = max(launched.began, self._read_at) if self._reader else launched.began
        self._read_at = read_at = time.perf_counter()  # the lanes of a CPU share it, and none of them asks for it
        results.count(busy_s=read_at - since)
        results.finish(len(pack.windows))

    def _rescuing(self) -> Callable[[Pack], Vectors]:
        """The pass in bfloat16, loaded when it is first needed."""
        assert self._rescue is not None
        with self._lock:
            self._rescuer = self._rescuer or self._rescue()
        return self._rescuer


def _here(vectors: Vectors) -> tuple[Vectors, Callable[[], None]]:
    """A CPU's vectors are on the host."""
    return vectors, lambda: None


def _copy_to_host(vectors: Vectors) -> tuple[Vectors, Callable[[], None]]:
    """Start copies from a GPU into pinned memory."""

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)

    on_host = Vectors(*({key: copied(tensor) for key, tensor in kind.items()} for kind in vectors.kinds))
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived.synchronize


def _overflown(pack: Pack, vectors: Vectors) -> NDArray[np.int64]:
    """Places of the windows that hold a number which is not finite."""
    finite = np.ones(len(pack.windows), np.bool_)
    for pooled in vectors.pooled.values():
        finite &= _are_finite(pooled)
    for hidden in vectors.tokens.values():
        finite &= np.logical_and.reduceat(_are_finite(hidden), pack.cu_seqlens[:-1])
    for weights in vectors.attentions.values():
        heads = len(weights) // int((pack.lengths**2).sum())
        starts = np.cumsum(heads * pack.lengths**2) - heads * pack.lengths**2
        finite &= np.logical_and.reduceat(torch.isfinite(weights).numpy(), starts)
    return np.flatnonzero(~finite)


def _are_finite(vectors_NH: torch.Tensor) -> NDArray[np.bool_]:
    """(N,) whether all numbers of a vector are finite: their sum tells, since that of half precision's can't overflow.

    Thirty times as fast as looking at each number, which would take longer than a GPU's pass over all layers.
    """
    return torch.isfinite(vectors_NH.sum(1, dtype=torch.float32)).numpy()
