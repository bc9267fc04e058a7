"""Varve's encoder as a variant of the benchmarks, with its defaults for threads and packs."""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tests.bench.peers import Setup


class Varve:
    """Mean of the "last", "first", middle ("half") or "all" layers, or the last layer's CLS vector ("cls")."""

    packages = ("torch", "transformers", "tokenizers")
    takes_tokens = True

    def __init__(self, setup: Setup, *, output: str = "last", dtype: str = "auto", **options: bool) -> None:
        from transformers import AutoConfig

        from varve.config.feature import Feature
        from varve.config.model import Model
        from varve.encoder.encoder import Encoder

        count = AutoConfig.from_pretrained(setup.folder).num_hidden_layers
        layers = {"all": range(count + 1), "first": [1], "half": [count // 2]}.get(output, [count])
        self.layers = [0] if output == "cls" else [layer - count - 1 for layer in layers]
        feature = Feature(pool="cls" if output == "cls" else "mean", layers=tuple(layers))
        model = Model(name=setup.folder, max_tokens=setup.max_tokens, dtype=dtype)
        self._encoder = Encoder(model, {"e": feature}, device=setup.device, **options)
        # Which code runs depends on the machine and on whether the kernels were compiled.
        self.ways = {way: getattr(self._encoder, way, "torch") for way in ("attention", "linear")}
        self._names = [column.name for column in self._encoder.feature_plan.columns]

    def tokenize(self, texts: Sequence[str]) -> list:
        rows = self._rows_of_blocks(texts)
        return [self._encoder.tokenizer(texts[at : at + rows]) for at in range(0, len(texts), rows)]

    def _rows_of_blocks(self, texts: Sequence[str]) -> int:
        """About the block size of a run, which uses the tokens of its first rows; here a token is four characters."""
        from varve.encoder.checkpoint.defaults import default_block_rows

        encoder = self._encoder
        tokens = sum(min(len(text) // 4, encoder.max_tokens) for text in texts) / len(texts)
        return default_block_rows(encoder.device.type, encoder.checkpoint, encoder.tokens_per_pack, tokens)

    def encode(self, tokens: list) -> NDArray[np.float32]:
        return np.vstack([np.hstack([columns[name] for name in self._names]) for columns in self._columns(tokens)])

    def _columns(self, tokens: list) -> Iterator[dict]:
        """Columns of each block; if the encoder supports it, the next block is queued while one is awaited."""
        if not hasattr(self._encoder, "start"):
            yield from map(self._encoder.encode, tokens)
            return
        queued = deque(self._encoder.start(block) for block in tokens[:1])
        for at in range(len(tokens)):
            queued.extend(self._encoder.start(block) for block in tokens[at + 1 : at + 2])
            yield queued.popleft().result().columns


class VarveSorted(Varve):
    """The same with texts sorted by length."""

    def tokenize(self, texts: Sequence[str]) -> list:
        self._order = np.argsort([len(text) for text in texts], kind="stable")
        return super().tokenize([texts[at] for at in self._order])

    def encode(self, tokens: list) -> NDArray[np.float32]:
        vectors = super().encode(tokens)
        return vectors[np.argsort(self._order)]
