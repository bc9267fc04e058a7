"""One model on one device: the token ids of windows in, feature columns out.

Knows nothing of Ray, Arrow, files or shards. Invariants: one forward pass gives all features of a window; nothing above
the plan's highest layer is run or kept in memory; token vectors are pooled as they leave their layer, so only rows x
hidden is kept; results stand in the order of the texts, and depend on nothing but the texts given in one call.

    >>> encode = Encoder("sentence-transformers/all-MiniLM-L6-v2", {"embedding": "mean@-1+normalize"})
    >>> encode(["A text.", "Another one."])["embedding"].shape
    (2, 384)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.columns import Column, plan_features
from pipeline.encoder import pooling
from pipeline.encoder.attention import Batch, dense_batch, packed_batch
from pipeline.encoder.gate import check_head, choose_layout
from pipeline.encoder.heads import run_head, run_pooler, takes_mean
from pipeline.encoder.layers import drop_layers_above, find_layers, tapped
from pipeline.encoder.load import Checkpoint, load_model, load_tokenizer, look_at
from pipeline.encoder.packing import gather, pack, token_index
from pipeline.encoder.vectors import finish
from pipeline.errors import JobError
from pipeline.spec import Feature, Model, Windows, parse_features
from pipeline.tokenizer import Tokenizer, Tokens

# Packs that stay in a CPU core's cache; on a GPU packs that keep it busy.
CPU_TOKENS_PER_PACK = 1024
CUDA_TOKENS_PER_PACK = 32_768


@dataclass(frozen=True, slots=True)
class Ragged:
    """A list column: row r holds values[offsets[r]:offsets[r + 1]]."""

    values: NDArray
    offsets: NDArray[np.int64]

    def __getitem__(self, row: int) -> NDArray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1


Columns = dict[str, NDArray | Ragged]


@dataclass(slots=True)
class _Kept:
    """What a call keeps of the windows it has run: float32, on the host."""

    pooled: dict[tuple[str, int], NDArray[np.float32]]  # (pool, layer) → (W, H)
    tokens: dict[int, NDArray[np.float32]]  # layer → (T, H)
    attentions: dict[int, NDArray[np.float32]]  # layer → flat, heads x L x L for each window
    attention_offsets: NDArray[np.int64]  # (W + 1,)


class Encoder:
    """A checkpoint, ready to give its features."""

    def __init__(
        self,
        model: Model | str,
        features: Mapping[str, Feature | str] | None = None,
        *,
        output_dtype: str = "float32",
        tokens_per_pack: int | None = None,
        device: str | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Load a model and check it against eager transformers.

        Args:
            model: hub id or folder, or the model section of a job.
            features: name → definition, or its short form such as "mean@-1+normalize"; the mean of the last layer
                by default.
            output_dtype: float32, float16, int8 or binary.
            tokens_per_pack: of one forward pass.
            device: "cpu" or "cuda"; CUDA where there is one by default.
            checkpoint: of the model, where the caller has looked at it already.

        Raises:
            JobError: the model or a feature can't be had.
        """
        spec = Model(name=model) if isinstance(model, str) else model
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.checkpoint = checkpoint or look_at(spec.name, spec.revision, trust_remote_code=spec.trust_remote_code)
        windows = spec.long_text if isinstance(spec.long_text, Windows) else None
        self.plan = plan_features(
            parse_features(features),
            self.checkpoint.shape,
            dtype=output_dtype,
            per_window=windows is not None and windows.vectors == "window",
        )
        self.max_tokens = resolve_max_tokens(spec, self.checkpoint)
        self.dtype = resolve_dtype(spec.dtype, self.device.type)
        self.tokens_per_pack = tokens_per_pack or default_tokens_per_pack(self.device.type)
        self.tokenizer = Tokenizer(
            load_tokenizer(self.checkpoint),
            self.max_tokens,
            windows=windows is not None,
            stride=windows.stride if windows else 0,
            spans=self.plan.wants("tokens") or self.plan.has_windows,
        )
        self._load()

    def _load(self) -> None:
        """Load in float32, compare with eager transformers, then drop the upper layers and cast."""
        logits = self.plan.wants("logits")
        model, classifier = load_model(self.checkpoint, head=logits, device=self.device)
        if classifier is not None:
            check_head(classifier, self.checkpoint.max_positions)
        self.layout, self.layout_reason = choose_layout(model, self.checkpoint.max_positions)
        if self.plan.attention_layers:
            model.set_attn_implementation("eager")
            self.layout, self.layout_reason = "dense", "attentions were asked for: windows of equal length, no padding"
        drop_layers_above(model, self.plan.top_layer)
        (classifier or model).to(getattr(torch, self.dtype))
        self._model, self._classifier, self._layers = model, classifier, find_layers(model)

    @property
    def num_parameters(self) -> int:
        """Parameters that are held in memory, those of dropped layers not among them."""
        return sum(parameter.numel() for parameter in (self._classifier or self._model).parameters())

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Columns:
        """Encode texts, or sentence pairs: {column: (R, width) array or `Ragged`}, with num_tokens and truncated."""
        tokens = self.tokenizer(texts, pairs)
        return {**self.encode(tokens), "num_tokens": tokens.num_tokens, "truncated": tokens.truncated}

    @torch.inference_mode()
    def encode(self, tokens: Tokens) -> Columns:
        """All feature columns of the texts, in their order."""
        kept = self._allocate(tokens)
        batches = pack(
            tokens.lengths,
            self.tokens_per_pack,
            padded=self.layout == "dense",
            equal=bool(self.plan.attention_layers),
        )
        for windows in batches:
            self._forward(tokens, windows, kept)
        return self._columns(tokens, kept)

    def _allocate(self, tokens: Tokens) -> _Kept:
        num_windows, num_tokens = len(tokens.lengths), len(tokens.input_ids)
        hidden, shape = self.checkpoint.shape.hidden_size, self.checkpoint.shape
        widths = dict.fromkeys(self.plan.pooled, hidden)
        if self.plan.wants("pooler"):
            widths["pooler", shape.num_layers] = hidden
        if self.plan.wants("logits"):
            widths["logits", shape.num_layers] = shape.num_labels
        squares = np.concatenate([np.zeros(1, np.int64), np.cumsum(shape.num_heads * tokens.lengths**2)])
        return _Kept(
            pooled={key: np.empty((num_windows, width), np.float32) for key, width in widths.items()},
            tokens={layer: np.empty((num_tokens, hidden), np.float32) for layer in self.plan.token_layers},
            attentions={layer: np.empty(squares[-1], np.float32) for layer in self.plan.attention_layers},
            attention_offsets=squares,
        )

    def _forward(self, tokens: Tokens, windows: NDArray[np.int64], kept: _Kept) -> None:
        """Run one pack of windows and keep what the plan wants of it."""
        lengths = tokens.lengths[windows]
        types = None if tokens.token_type_ids is None else gather(tokens.token_type_ids, tokens.offsets, windows)
        lay_out = packed_batch if self.layout == "packed" else dense_batch
        batch = lay_out(self._model, gather(tokens.input_ids, tokens.offsets, windows), types, lengths)
        last, top = self.plan.num_layers, self.plan.top_layer
        attentions = bool(self.plan.attention_layers)

        def tap(layer: int, hidden: Tensor) -> None:
            ragged = batch.ragged(hidden)
            for pool, of_layer in self.plan.pooled:
                if of_layer == layer:
                    kept.pooled[pool, layer][windows] = _pool(pool, ragged, batch.cu).cpu().numpy()
            if layer in self.plan.token_layers:
                kept.tokens[layer][token_index(tokens.offsets, windows)] = ragged.float().cpu().numpy()

        wanted = {layer for _, layer in self.plan.pooled} | self.plan.token_layers
        stop_at = None if attentions or top == last else top
        with tapped(self._layers, wanted - {last}, tap, stop_at=stop_at):
            output = self._model(**batch.inputs, **({"output_attentions": True} if attentions else {}))
            if top == last:
                tap(last, output.last_hidden_state)
                self._run_heads(batch, output.last_hidden_state, windows, kept)
            for layer in self.plan.attention_layers:
                at = token_index(kept.attention_offsets, windows)
                kept.attentions[layer][at] = output.attentions[layer - 1].float().flatten().cpu().numpy()

    def _run_heads(self, batch: Batch, hidden: Tensor, windows: NDArray[np.int64], kept: _Kept) -> None:
        """Pooler output and logits, where the plan wants them."""
        last = self.plan.num_layers
        if not (self.plan.wants("pooler") or self._classifier is not None):
            return
        ragged = batch.ragged(hidden)
        cls_WH = ragged[batch.cu[:-1]]
        has_pooler = getattr(self._model, "pooler", None) is not None and self.checkpoint.shape.has_pooler
        pooled = run_pooler(self._model, cls_WH) if has_pooler else None
        if self.plan.wants("pooler") and pooled is not None:
            kept.pooled["pooler", last][windows] = pooled.cpu().numpy()
        if self._classifier is not None:
            seen = pooling.mean(ragged, batch.cu).to(ragged.dtype) if takes_mean(self._classifier) else cls_WH
            logits = run_head(self._classifier, seen, None if pooled is None else pooled.to(ragged.dtype))
            kept.pooled["logits", last][windows] = logits.cpu().numpy()

    def _columns(self, tokens: Tokens, kept: _Kept) -> Columns:
        columns: Columns = {}
        own = np.ones(len(tokens.input_ids), np.bool_)
        if tokens.sequence_ids is not None and not self.plan.special_tokens:
            own = tokens.sequence_ids >= 0
        counted = np.concatenate([np.zeros(1, np.int64), np.cumsum(own, dtype=np.int64)])
        token_rows = counted[tokens.offsets[tokens.rows]]
        for column in self.plan.columns:
            columns |= self._column(column, tokens, kept, own, token_rows)
        if self.plan.wants("tokens"):
            assert tokens.spans is not None
            assert tokens.sequence_ids is not None
            columns["input_ids"] = Ragged(tokens.input_ids[own], token_rows)
            columns["offsets"] = Ragged(tokens.spans[own], token_rows)
            columns["sequence_ids"] = Ragged(tokens.sequence_ids[own], token_rows)
        if self.plan.has_windows:
            columns["windows"] = Ragged(_window_spans(tokens), tokens.rows)
        return columns

    def _column(
        self,
        column: Column,
        tokens: Tokens,
        kept: _Kept,
        own: NDArray[np.bool_],
        token_rows: NDArray[np.int64],
    ) -> Columns:
        if column.form == "attentions":
            squares = kept.attention_offsets[tokens.rows]
            return {column.name: Ragged(kept.attentions[column.layers[0]].astype(column.dtype), squares)}
        if column.form == "tokens":
            stored, scales = finish(column, [kept.tokens[layer][own] for layer in column.layers])
            return _named(column, stored, scales, token_rows)
        layers = [kept.pooled[column.pool, layer] for layer in column.layers]
        if column.form == "windows":
            return _named(column, *finish(column, layers), tokens.rows)
        if len(tokens.lengths) > len(tokens.truncated):
            layers = [_pool_rows(layer, tokens, column.pool) for layer in layers]
        return _named(column, *finish(column, layers), None)


def resolve_max_tokens(model: Model, checkpoint: Checkpoint) -> int:
    """Tokens of a window: what the job says, or 512 at most.

    Raises:
        JobError: the model has fewer positions.
    """
    positions = checkpoint.max_positions
    key, wanted = "model.max_tokens", model.max_tokens
    if isinstance(model.long_text, Windows):
        key, wanted = "model.long_text.window", model.long_text.window
    if wanted == "auto":
        return min(512, positions or 512)
    if positions is not None and wanted > positions:
        msg = (
            f"{key}: {wanted} exceeds the {positions} positions of {model.name}. "
            "Lower it, take a long_text window, or use an encoder with a longer context"
        )
        raise JobError(msg)
    return wanted


def resolve_dtype(dtype: str, device: str) -> str:
    """`auto` is float16 on CUDA (eight times nearer to float32 than bfloat16 at the same speed), else float32."""
    if dtype != "auto":
        return dtype
    return "float16" if device == "cuda" else "float32"


def default_tokens_per_pack(device: str) -> int:
    """Tokens of one forward pass on a device."""
    return CUDA_TOKENS_PER_PACK if device == "cuda" else CPU_TOKENS_PER_PACK


def _pool(pool: str, hidden_TH: Tensor, cu: Tensor) -> Tensor:
    match pool:
        case "cls":
            return pooling.cls(hidden_TH, cu)
        case "last":
            return pooling.last(hidden_TH, cu)
        case "mean":
            return pooling.mean(hidden_TH, cu)
        case _:
            return pooling.maximum(hidden_TH, cu)


def _pool_rows(pooled: NDArray[np.float32], tokens: Tokens, pool: str) -> NDArray[np.float32]:
    weights, rows = torch.from_numpy(tokens.lengths), torch.from_numpy(tokens.rows)
    return pooling.pool_rows(torch.from_numpy(pooled), weights, rows, pool).numpy()


def _named(
    column: Column, stored: NDArray, scales: NDArray[np.float32] | None, offsets: NDArray[np.int64] | None
) -> Columns:
    arrays = {column.name: stored}
    if scales is not None and column.scale_name:
        arrays[column.scale_name] = scales
    return {name: values if offsets is None else Ragged(values, offsets) for name, values in arrays.items()}


def _window_spans(tokens: Tokens) -> NDArray[np.int32]:
    """(W, 2) characters [start, stop) of each window in its text."""
    assert tokens.spans is not None
    assert tokens.sequence_ids is not None
    real = tokens.sequence_ids >= 0
    far = np.iinfo(np.int32).max
    # Windows have tokens, so no segment of reduceat is empty; a window of special tokens alone spans nothing.
    starts = np.minimum.reduceat(np.where(real, tokens.spans[:, 0], far), tokens.offsets[:-1])
    stops = np.maximum.reduceat(np.where(real, tokens.spans[:, 1], 0), tokens.offsets[:-1])
    return np.stack([np.minimum(starts, stops), stops], axis=1).astype(np.int32)


def describe(encoder: Encoder) -> dict[str, Any]:
    """How this encoder runs, for the manifest."""
    return {
        "device": str(encoder.device) if encoder.device.type == "cpu" else torch.cuda.get_device_name(encoder.device),
        "dtype": encoder.dtype,
        "layout": encoder.layout,
        "layout_reason": encoder.layout_reason,
        "threads": torch.get_num_threads(),
    }
