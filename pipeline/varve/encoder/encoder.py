"""One model on one device: the token ids of windows in, feature columns out.

Knows nothing of Ray, Arrow, files or shards. Invariants: one forward pass gives all features of a window; nothing above
the plan's highest layer is run or kept in memory; windows with the same tokens are encoded once; results stand in the
order of the texts, and depend on nothing but the texts given in one call.

    >>> encode = Encoder("sentence-transformers/all-MiniLM-L6-v2", {"embedding": "mean@-1+normalize"})
    >>> encode(["A text.", "Another one."])["embedding"].shape
    (2, 384)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from varve.config.feature import Feature
from varve.config.feature_shorthand import parse_features
from varve.config.model import NO_WINDOWS_OF_PAIRS, Model
from varve.encoder.checkpoint.defaults import (
    default_tokens_per_pack,
    make_plan,
    make_tokenizer,
    resolve_dtype,
    resolve_max_tokens,
)
from varve.encoder.checkpoint.inspection import Checkpoint, inspect_checkpoint
from varve.encoder.checkpoint.loading import load_model
from varve.encoder.deduplication import find_distinct
from varve.encoder.kernels.cpu_library import CpuLibrary, find_cpu_library
from varve.encoder.kernels.gpu_support import find_triton_code
from varve.encoder.memory_budget import most_tokens
from varve.encoder.model.attention import attends_with
from varve.encoder.model.cls_only_layer import ClsOnlyLayer
from varve.encoder.model.forward import Forward, pooled_vectors, takes_first_tokens_alone
from varve.encoder.model.fused_linear import multiplies_alone, multiplies_with
from varve.encoder.model.heads import run_head, run_pooler, takes_mean
from varve.encoder.model.layer_hooks import LayerHooks, compile_layers, drop_layers_above
from varve.encoder.model.parity_check import can_narrow, check_head, choose_layout
from varve.encoder.pack_executor import PackExecutor, available_cores
from varve.encoder.packing import Pack, pack
from varve.encoder.pending_call import PendingCall
from varve.encoder.ragged import Columns
from varve.encoder.results import Kept, Results
from varve.errors import JobError, RunError
from varve.preprocessing.tokenizer import Tokens


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
        threads: int | None = None,
        compiled: bool = False,
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
            threads: packs that run at once on a CPU, each on one core; all cores by default.
            compiled: run the layers through torch.compile; on CUDA only, since it is slower on a CPU.
            checkpoint: of the model, where the caller has looked at it already.

        Raises:
            JobError: the model or a feature can't be had.
        """
        spec = Model(name=model) if isinstance(model, str) else model
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.checkpoint = checkpoint or inspect_checkpoint(
            spec.name, spec.revision, trust_remote_code=spec.trust_remote_code
        )
        self.plan = make_plan(spec, parse_features(features), self.checkpoint, output_dtype)
        self.max_tokens = resolve_max_tokens(spec, self.checkpoint)
        self.dtype = resolve_dtype(spec.dtype, self.device.type)
        self.tokens_per_pack = tokens_per_pack or default_tokens_per_pack(self.device.type, self.checkpoint)
        self.threads = threads or available_cores()
        self.compiled = compiled and self.device.type == "cuda"
        self.tokenizer = make_tokenizer(spec, self.checkpoint, self.plan)
        self._load()

    def _load(self) -> None:
        """Load in float32, compare with eager transformers, then drop the upper layers and cast."""
        kernel = find_cpu_library() if self.device.type == "cpu" and self.dtype == "float32" else None
        try:
            hooks = self._load_checked(kernel)
        except JobError:
            if kernel is None:
                raise
            hooks = self._load_checked(None)  # its code reads like what the kernel takes, and does something else
        if self.plan.attention_layers:
            self._model.set_attn_implementation("eager")
            self.layout, self.layout_reason = "dense", "attentions were asked for: windows of equal length, no padding"
        forward = self._make_forward(self._model, self._classifier, hooks, self.dtype)
        shape = self.checkpoint.shape
        self.linear = multiplies_with(self._model)
        head_dim = shape.hidden_size // shape.num_heads
        self.attention = attends_with(self._model, head_dim) if self.layout == "packed" else "torch"
        self.most_tokens = most_tokens(forward, self.device, self.max_tokens)
        self._lanes = PackExecutor.on(
            self.device,
            forward,
            self.threads,
            rescue=self._make_rescue if self.dtype == "float16" else None,
            most_tokens=self.most_tokens,
            cut_last=self.attention != "torch" and multiplies_alone(self._model),
        )

    def _load_checked(self, kernel: CpuLibrary | None) -> LayerHooks:
        """The model, its classifier and layout, with its linear layers in the kernel if there is one."""
        self._model, self._classifier = load_model(self.checkpoint, head=self.plan.wants("logits"), device=self.device)
        hooks, positions = LayerHooks(self._model), self.checkpoint.max_positions
        if self._classifier is not None:
            check_head(self._classifier, positions)
        self.layout, self.layout_reason = choose_layout(self._model, hooks, positions, kernel=kernel)
        return hooks

    def _make_forward(
        self, model: PreTrainedModel, classifier: PreTrainedModel | None, hooks: LayerHooks, dtype: str
    ) -> Forward:
        drop_layers_above(model, self.plan.top_layer)
        first_tokens = self._find_first_tokens(model)
        (classifier or model).to(getattr(torch, dtype))
        self.compiled = self.compiled and compile_layers(model)
        self.top_layer = "all tokens" if first_tokens is None else "first tokens"
        return Forward(model, hooks, self.plan, packed=self.layout == "packed", first_tokens=first_tokens)

    def _find_first_tokens(self, model: PreTrainedModel) -> ClsOnlyLayer | None:
        """The highest layer for first tokens alone, where nothing else of it is wanted and the numbers are the same."""
        if self.layout != "packed" or self.compiled or not takes_first_tokens_alone(self.plan, model):
            return None
        found = ClsOnlyLayer.of(model)
        return found if found and can_narrow(model, found, self.checkpoint.max_positions) else None

    def _make_rescue(self) -> Forward:
        """The same pass in bfloat16, whose range is that of float32."""
        model, _ = load_model(self.checkpoint, head=False, device=self.device)
        hooks = LayerHooks(model)
        if self.layout == "packed":
            choose_layout(model, hooks, self.checkpoint.max_positions)
        else:
            model.set_attn_implementation(self._model.config._attn_implementation or "eager")  # noqa: SLF001 (has no other name)
        return self._make_forward(model, None, hooks, "bfloat16")

    @property
    def num_parameters(self) -> int:
        """Parameters that are held in memory, those of dropped layers not among them."""
        return sum(parameter.numel() for parameter in (self._classifier or self._model).parameters())

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Columns:
        """Encode texts, or sentence pairs: {column: (R, width) array or `Ragged`}, with num_tokens and truncated.

        Raises:
            JobError: no lists of texts, pairs, which windows don't take, or a text that has no tokens.
            RunError: a text does not fit into the device's memory.
        """
        check_texts(texts, pairs, windows=self.tokenizer.cuts_windows)
        tokens = self.tokenizer(texts, pairs)
        return {**self.encode(tokens), "num_tokens": tokens.num_tokens, "truncated": tokens.truncated}

    def encode(self, tokens: Tokens) -> Columns:
        """All feature columns of the texts, in their order.

        Raises:
            JobError: see `start`.
            RunError: a text does not fit into the device's memory, or a feature of it is not finite.
        """
        encoded = self.start(tokens).result()
        for text, reason in encoded.reasons.items():
            msg = f"text {text}: {reason}"
            raise RunError(msg)
        return encoded.columns

    def start(self, tokens: Tokens) -> PendingCall:
        """Queue the texts' packs and return at once, so that the device finds the next call's packs behind them.

        Raises:
            JobError: a text has no tokens, or one that the model does not know.
        """
        for text, reason in self.tokenizer.reasons_against(tokens).items():
            msg = f"text {text}: {reason}. Leave it out"
            raise JobError(msg)
        distinct, kind = find_distinct(tokens)
        lengths = tokens.lengths[distinct]
        shape = self.checkpoint.shape
        results = Results(
            self.plan, pooled_vectors(self.plan, self._model), lengths, shape.hidden_size, shape.num_heads
        )
        dense, equal = self.layout == "dense", bool(self.plan.attention_layers)
        packs = list(pack(lengths, self.tokens_per_pack, padded=dense, equal=equal))
        results.count(repeats=len(kind) - len(distinct), packs=len(packs), packed_tokens=int(lengths.sum()))
        # The longest windows first: what is left for the end is small, and no thread waits long for another.
        laid_out = [Pack.of(tokens, distinct[windows], windows) for windows in reversed(packs)]
        self._lanes.submit(laid_out, results)
        return PendingCall(self.plan, self.run_heads, tokens, kind, results)

    @torch.inference_mode()
    def run_heads(self, kept: Kept) -> None:
        """Add pooler output and logits, where the plan wants them, to the vectors that they stand on."""
        last = self.plan.num_layers
        if not (self.plan.wants("pooler") or self._classifier is not None):
            return
        cls_WH = self._on_device(kept, "cls")
        # Some architectures have a pooler under a head alone (Nomic, GTE); without a head its weights may be missing.
        has_pooler = self.checkpoint.shape.has_pooler or self._classifier is not None
        pooler = getattr(self._model, "pooler", None) if has_pooler else None
        pooled = None if pooler is None else run_pooler(self._model, cls_WH)
        if self.plan.wants("pooler") and pooled is not None:
            kept.pooled["pooler", last] = pooled.numpy(force=True)
        if self._classifier is not None:
            seen = self._on_device(kept, "mean") if takes_mean(self._classifier) else cls_WH
            logits = run_head(self._classifier, seen, None if pooled is None else pooled.to(seen.dtype))
            kept.pooled["logits", last] = logits.numpy(force=True)

    def _on_device(self, kept: Kept, pool: str) -> torch.Tensor:
        vectors = torch.from_numpy(kept.pooled[pool, self.plan.num_layers])
        return vectors.to(self.device, getattr(torch, self.dtype))


def describe(encoder: Encoder) -> dict[str, Any]:
    """How this encoder runs, for the manifest."""
    on_cpu = encoder.device.type == "cpu"
    return {
        "device": "cpu" if on_cpu else torch.cuda.get_device_name(encoder.device),
        "dtype": encoder.dtype,
        "layout": encoder.layout,
        "layout_reason": encoder.layout_reason,
        "attention": encoder.attention,
        "linear": encoder.linear,
        "top_layer": encoder.top_layer,
        "tokens_per_pack": encoder.tokens_per_pack,
        **({"threads": encoder.threads} if on_cpu else _on_gpu(encoder)),
        "compiled": encoder.compiled,
    }


def _on_gpu(encoder: Encoder) -> dict[str, Any]:
    return {"most_tokens": encoder.most_tokens, "kernels": "triton" if find_triton_code() else "torch"}


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None, *, windows: bool) -> None:
    """Refuse what Python takes for texts and is none: a single text is a sequence too, of its characters.

    Args:
        texts: as a caller gave them.
        pairs: likewise.
        windows: long texts are cut into several.

    Raises:
        JobError: one is no list of texts, there are not as many of both, or windows are to be cut of pairs.
    """
    for each in (texts,) if pairs is None else (texts, pairs):
        _check_list(each)
    if pairs is not None and windows:
        raise JobError(NO_WINDOWS_OF_PAIRS)
    if pairs is not None and len(texts) != len(pairs):
        msg = f"{len(texts)} first texts and {len(pairs)} second ones are no pairs"
        raise JobError(msg)


def _check_list(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        msg = f"a single text was given, where a list is expected: [{texts[:20]!r}]"
        raise JobError(msg)
    for at, text in enumerate(texts):
        if not isinstance(text, str):
            msg = f"text {at}: a {type(text).__name__} is no text. Leave it out"
            raise JobError(msg)
