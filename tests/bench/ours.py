"""Varve's encoder as a variant of the benchmarks, with its own defaults for threads, packs and precision."""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from tests.bench.peers import Setup


class Varve:
    """The mean of some layers: "last", "all", or those up to a share of the model's; or the last layer's CLS vector."""

    packages = ("torch", "transformers", "tokenizers")
    takes_tokens = True

    def __init__(self, setup: Setup, *, wanted: str = "last", **options: bool) -> None:
        from transformers import AutoConfig

        from varve.config.feature import Feature
        from varve.config.model import Model
        from varve.encoder.encoder import Encoder

        count = AutoConfig.from_pretrained(setup.folder).num_hidden_layers
        layers = {"all": range(count + 1), "first": [1], "half": [count // 2]}.get(wanted, [count])
        self.layers = [0] if wanted == "cls" else [layer - count - 1 for layer in layers]
        feature = Feature(pool="cls" if wanted == "cls" else "mean", layers=tuple(layers))
        model = Model(name=setup.folder, max_tokens=setup.max_tokens)
        self._encoder = Encoder(model, {"e": feature}, device=setup.device, **options)
        # Another machine, or a checkout that was not installed, may run other code.
        self.ways = {way: getattr(self._encoder, way, "torch") for way in ("attention", "linear")}
        self._names = [column.name for column in self._encoder.feature_plan.columns]

    def tokenize(self, texts: Sequence[str]) -> list:
        rows = self._rows_of_blocks(texts)
        return [self._encoder.tokenizer(texts[at : at + rows]) for at in range(0, len(texts), rows)]

    def _rows_of_blocks(self, texts: Sequence[str]) -> int:
        """About as a run settles it from the tokens of its first rows: here four characters are one."""
        from varve.encoder.checkpoint.defaults import default_block_rows

        encoder = self._encoder
        tokens = sum(min(len(text) // 4, encoder.max_tokens) for text in texts) / len(texts)
        return default_block_rows(encoder.device.type, encoder.checkpoint, encoder.tokens_per_pack, tokens)

    def encode(self, tokens: list) -> NDArray[np.float32]:
        return np.vstack([np.hstack([columns[name] for name in self._names]) for columns in self._columns(tokens)])

    def _columns(self, tokens: list) -> Iterator[dict]:
        """The columns of each block; where the encoder can, the next block is queued behind the one awaited."""
        if not hasattr(self._encoder, "start"):
            yield from map(self._encoder.encode, tokens)
            return
        queued = deque(self._encoder.start(block) for block in tokens[:1])
        for at in range(len(tokens)):
            queued.extend(self._encoder.start(block) for block in tokens[at + 1 : at + 2])
            yield queued.popleft().result().columns


class VarveSorted(Varve):
    """The same with the texts handed over in the order of their lengths."""

    def tokenize(self, texts: Sequence[str]) -> list:
        self._order = np.argsort([len(text) for text in texts], kind="stable")
        return super().tokenize([texts[at] for at in self._order])

    def encode(self, tokens: list) -> NDArray[np.float32]:
        vectors = super().encode(tokens)
        return vectors[np.argsort(self._order)]
