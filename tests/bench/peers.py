"""Peers: other implementations of texts → mean of a model's last layer, in torch.

A variant has `tokenize` (texts → input of `encode`), `encode` (→ (N, layers x H) vectors in the order of the texts),
`layers` (the blocks of a vector, numbered as in `Reference`), `takes_tokens` (whether tokenizing is separate from
encoding) and `packages` (what it is made of). Each one gets its best conditions: texts sorted by length if it does not
sort them itself, all cores, small batches.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings that all variants of a comparison share."""

    folder: str
    max_tokens: int
    device: str
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


class Rows:
    """Base of variants that encode batches of token ids."""

    packages: tuple[str, ...] = ()
    layers: Sequence[int] = (-1,)
    takes_tokens = True
    lanes = 1  # batches at the same time
    order = "length"  # or "file"

    def __init__(self, setup: Setup, *, rows: int | None = None, tokens: int | None = None) -> None:
        """Form batches of `rows` rows, or of at most `tokens` tokens with padding."""
        from tokenizers import Tokenizer

        self.setup, self._rows, self._tokens = setup, rows, tokens
        self._tokenizer = Tokenizer.from_file(f"{setup.folder}/tokenizer.json")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(setup.max_tokens)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def encode(self, ids: list[list[int]]) -> Any:
        batches = list(self._batches([len(row) for row in ids]))
        with ThreadPoolExecutor(self.lanes) as pool:
            results = list(pool.map(lambda batch: self.run([ids[at] for at in batch]), batches))
        vectors = np.empty((len(ids), results[0].shape[1]), np.float32)
        for batch, batch_vectors in zip(batches, results, strict=True):
            vectors[batch] = batch_vectors
        return vectors

    def run(self, ids: list[list[int]]) -> Any:
        """Vectors of one batch, (R, layers x H)."""
        raise NotImplementedError

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        order = range(len(lengths))
        if self.order == "length":
            order = sorted(order, key=lambda at: -lengths[at])
        batch: list[int] = []
        for at in order:
            longest = max(lengths[at], lengths[batch[0]]) if batch else 0
            if batch and (len(batch) == self._rows or (self._tokens and longest * (len(batch) + 1) > self._tokens)):
                yield batch
                batch = []
            batch.append(at)
        yield batch


def padded(ids: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(input_ids, attention_mask), each (R, T), padded to the longest row with 0, the id of BERT's [PAD]."""
    lengths = np.array([len(row) for row in ids])
    mask = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.zeros(mask.shape, np.int64)
    input_ids[mask] = np.concatenate([np.asarray(row, np.int64) for row in ids])
    return input_ids, mask.astype(np.int64)


class Transformers(Rows):
    """Plain transformers with padded batches, in the order of the texts or sorted by length.

    `int8` is torch's dynamic quantization of all linear layers.
    """

    packages = ("torch", "transformers", "tokenizers")

    def __init__(
        self,
        setup: Setup,
        *,
        order: str = "length",
        attention: str = "sdpa",
        exact: bool = False,
        int8: bool = False,
        **batch: int,
    ) -> None:
        import torch
        from transformers import AutoModel

        super().__init__(setup, **batch)
        torch.set_num_threads(setup.threads)
        torch.backends.cuda.matmul.allow_tf32 = False
        self.order = order
        dtype = torch.float32 if exact or setup.device == "cpu" else torch.float16
        model = AutoModel.from_pretrained(setup.folder, attn_implementation=attention, dtype=dtype)
        self._torch, self._model = torch, model.to(setup.device).eval()
        if int8:  # the weights at load, the inputs of each batch per tensor
            torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8, inplace=True)

    def run(self, ids: list[list[int]]) -> Any:
        with self._torch.inference_mode():
            input_ids, mask = (self._torch.from_numpy(array).to(self.setup.device) for array in padded(ids))
            hidden = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state.float()
            return ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu().numpy()


class Reference(Transformers):
    """The expected vectors: the last layer's CLS, then the mean of every layer; eager, float32, one text at a time."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, rows=1, attention="eager", exact=True)
        self.layers = range(self._model.config.num_hidden_layers + 2)

    def run(self, ids: list[list[int]]) -> Any:
        with self._torch.inference_mode():
            input_ids = self._torch.tensor(ids, device=self.setup.device)
            hidden = self._model(input_ids=input_ids, output_hidden_states=True).hidden_states
            means = [layer.float().mean(1) for layer in hidden]
            return self._torch.hstack([hidden[-1][:, 0].float(), *means]).cpu().numpy()


class SentenceTransformers:
    """`SentenceTransformer.encode`, which sorts by characters; `engine` may replace the torch model."""

    layers = (-1,)
    takes_tokens = False

    def __init__(self, setup: Setup, *, rows: int, engine: Callable[[Setup], Any] | None = None) -> None:
        import torch
        from sentence_transformers import SentenceTransformer, models

        torch.set_num_threads(setup.threads)
        kwargs = {"dtype": torch.float32 if setup.device == "cpu" else torch.float16}
        inner = models.Transformer(setup.folder, max_seq_length=setup.max_tokens, model_kwargs=kwargs)
        pooling = models.Pooling(inner.get_word_embedding_dimension(), pooling_mode="mean")
        self.packages = ("sentence-transformers", "transformers")
        if engine is not None:
            replacement = engine(setup)
            self.packages += replacement.packages
            inner.auto_model.encoder = torch.nn.Identity()
            inner.auto_model.forward = lambda input_ids, attention_mask, **_: {
                "last_hidden_state": torch.from_numpy(replacement.hidden(input_ids.numpy(), attention_mask.numpy()))
            }
        self._rows, self._model = rows, SentenceTransformer(modules=[inner, pooling], device=setup.device)

    def tokenize(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def encode(self, texts: Sequence[str]) -> Any:
        return np.asarray(self._model.encode(list(texts), batch_size=self._rows, show_progress_bar=False))
