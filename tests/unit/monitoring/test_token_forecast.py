"""The time left of runs whose texts grow, shrink or jump, by a simulation of replicas that encode blocks in order."""

from dataclasses import dataclass

import numpy as np
import pytest

from varve.monitoring.arrival_rate import ArrivalRate
from varve.monitoring.block import Added, Block
from varve.monitoring.source_sizes import SourceSizes
from varve.monitoring.token_forecast import EncodedBlocks, tokens_left
from varve.ranges import Range, missing

ROWS = 20_000
BLOCK = 50  # rows; a part is one block
TOKENS_PER_S = 2000.0
PLACE = np.linspace(0, 1, ROWS)
SHAPES = {
    "constant": 100 + 0 * PLACE,
    "growing": 5 + 245 * PLACE,
    "shrinking": 250 - 245 * PLACE,
    "growing in each shard": 5 + 245 * (PLACE * 8 % 1),
    "jump": np.where(PLACE < 0.5, 30, 200),
    "fall": np.where(PLACE < 0.5, 200, 30),
    "sorted": np.sort(np.random.default_rng(0).lognormal(4, 0.8, ROWS)).clip(3, 256),
}


@dataclass(frozen=True)
class Simulation:
    """A run of a source."""

    shape: str
    shards: int = 1
    replicas: int = 1
    has_bytes: bool = False  # the source knows the bytes of its texts
    committed: float = 0.0  # share of the blocks that an earlier run has committed

    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) relative errors of the time left and of the tokens left, from a quarter of the time to 95 % of it."""
        rng = np.random.default_rng(1)
        tokens = np.maximum(3, rng.gamma(3, SHAPES[self.shape] / 3)).astype(int).reshape(self.shards, -1)
        texts = ((tokens - 2) * rng.uniform(3, 6, tokens.shape) + 4).astype(int)
        length = tokens.shape[1]
        blocks = [Range(shard, row, row + BLOCK) for shard in range(self.shards) for row in range(0, length, BLOCK)]
        first = round(self.committed * len(blocks))
        cells = {
            shard: missing([block for block in blocks[:first] if block.shard == shard], BLOCK)
            for shard in {block.shard for block in blocks[first:]}
        }
        footers = tuple((1.002 * texts.sum(1)).astype(int).tolist()) if self.has_bytes else None
        sizes = SourceSizes.of((length,) * self.shards, footers, cells)
        remaining, encoded, rate = sizes.remaining(cells, BLOCK), EncodedBlocks(sizes), ArrivalRate()
        arrivals = self._arrivals(blocks[first:], tokens, rng)
        end_s, left = arrivals[-1][0], sum(tokens[b.shard, b.start : b.stop].sum() for b in blocks[first:])
        assert remaining.rows == BLOCK * len(arrivals)
        done, errors = dict.fromkeys(range(self.replicas), 0), []
        for clock_s in np.linspace(0, 0.95 * end_s, 200):
            while arrivals[0][0] <= clock_s:
                _, replica, block = arrivals.pop(0)
                rows = block.shard, slice(block.start, block.stop)
                count = int(tokens[rows].sum())
                encoded.add(
                    Block(BLOCK, count, text_bytes=int(texts[rows].sum())), Added(BLOCK, count), block, block.start
                )
                done[replica], left = done[replica] + count, left - count
            rate.observe(clock_s, done)
            if encoded.sums().rows:
                forecast = tokens_left(remaining, encoded.sums())
                left_s = rate.seconds_left(clock_s, forecast)
                if clock_s >= end_s / 4 and left_s is not None:
                    errors.append((left_s / (end_s - clock_s) - 1, forecast / left - 1))
        return np.array(errors)[:, 0], np.array(errors)[:, 1]

    def _arrivals(self, blocks, tokens, rng) -> list[tuple[float, int, Range]]:
        """(second, replica, block) of each block; a replica that is free takes the next one."""
        free_s, arrivals = np.zeros(self.replicas), []
        for block in blocks:
            replica = int(free_s.argmin())
            free_s[replica] += tokens[block.shard, block.start : block.stop].sum() / TOKENS_PER_S
            free_s[replica] += rng.uniform(-0.1, 0.1)
            arrivals.append((float(free_s[replica]), replica, block))
        return sorted(arrivals)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("shards", "replicas", "committed"), [(1, 1, 0.0), (8, 4, 0.0), (8, 1, 0.4)])
def test_time_left_of_a_source_that_knows_its_bytes_is_right_for_any_shape(shape, shards, replicas, committed):
    time, tokens = Simulation(shape, shards, replicas, has_bytes=True, committed=committed).errors()
    assert np.abs(time).max() < 0.25
    assert np.abs(tokens).mean() < 0.07


@pytest.mark.parametrize("shape", ["constant", "growing", "growing in each shard"])
@pytest.mark.parametrize(("shards", "replicas"), [(8, 1), (8, 4)])
def test_time_left_of_texts_that_grow_evenly_is_right_without_their_bytes(shape, shards, replicas):
    time, _ = Simulation(shape, shards, replicas).errors()
    assert np.abs(time).max() < 0.25


@pytest.mark.parametrize("shape", ["constant", "growing"])
def test_time_left_of_one_file_that_was_encoded_in_part_is_right(shape):
    time, _ = Simulation(shape, has_bytes=True, committed=0.4).errors()
    assert np.abs(time).max() < 0.25


@pytest.mark.parametrize(("shards", "committed"), [(1, 0.0), (1, 0.4), (8, 0.0)])
def test_forecast_of_texts_that_shrink_is_better_than_their_mean_without_their_bytes(shards, committed):
    time, _ = Simulation("shrinking", shards, committed=committed).errors()
    assert np.abs(time).max() < 0.9  # the mean so far is 110 to 500 % too high
    assert np.abs(time).mean() < 0.2


def test_forecast_after_a_jump_that_nothing_announced_is_bounded():
    _, tokens = Simulation("jump").errors()
    assert np.abs(tokens).max() < 0.6  # the mean so far is 75 % too low


def forecast(blocks, rows=1000, text_bytes=None) -> float:
    """Tokens left of one shard after blocks of (rows, tokens, bytes)."""
    cells = {0: missing([], 10)}
    sizes = SourceSizes.of((rows,), text_bytes, cells)
    encoded, row = EncodedBlocks(sizes), 0
    for count, tokens, num_bytes in blocks:
        encoded.add(Block(count, tokens, text_bytes=num_bytes), Added(count, tokens), Range(0, row, row + count), row)
        row += count
    return tokens_left(sizes.remaining(cells, 10), encoded.sums())


def test_forecast_of_one_block_is_its_mean():
    assert forecast([(10, 200, 0)]) == pytest.approx(990 * 20, rel=0.02)


def test_forecast_of_texts_without_tokens_is_zero():
    assert forecast([(10, 0, 40)] * 3, text_bytes=(4000,)) == pytest.approx(0, abs=1)


@pytest.mark.parametrize("footer", [500, 3000])
def test_footers_that_count_repeated_texts_once_are_not_used(footer):
    blocks = [(10, 200, 800)] * 20
    assert forecast(blocks, text_bytes=(footer,)) == pytest.approx(800 * 20, rel=0.05)


def test_forecast_at_the_end_is_bounded_by_the_rows_left():
    assert forecast([(10, 200, 800)] * 99, text_bytes=(10 * 80_000,)) <= 10 * 20 * 3
