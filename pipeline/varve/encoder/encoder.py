"""One model on one device: turns texts, or the token ids of their windows, into feature columns.

Knows nothing of Ray, Arrow, files or shards. Invariants: one forward pass computes all features of a window; layers
above the highest one needed are neither run nor kept in memory; windows with equal tokens are encoded once; results
have the order of the texts and depend only on the texts of the same call.

    >>> encode = Encoder("sentence-transformers/all-MiniLM-L6-v2", {"embedding": "mean@-1+normalize"})
    >>> encode(["A text.", "Another one."])["embedding"].shape
    (2, 384)
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from varve.config.feature import Feature
from varve.config.feature_shorthand import parse_features
from varve.config.model import Model
from varve.config.validation_errors import validate_section
from varve.encoder.arguments import check_texts
from varve.encoder.checkpoint.defaults import (
    default_tokens_per_pack,
    make_feature_plan,
    make_tokenizer,
    resolve_dtype,
    resolve_max_tokens,
)
from varve.encoder.checkpoint.heads import default_features, text_rules
from varve.encoder.checkpoint.inspection import Checkpoint, inspect_checkpoint
from varve.encoder.checkpoint.loading import load_model
from varve.encoder.deduplication import find_distinct
from varve.encoder.head_outputs import add_head_outputs
from varve.encoder.kernels.cpu_library import CpuLibrary, find_cpu_library
from varve.encoder.memory_budget import measure_max_pack_tokens
from varve.encoder.model.attention import attention_backend
from varve.encoder.model.cls_only_layer import ClsOnlyLayer
from varve.encoder.model.forward import Forward, needs_only_cls_of_top_layer, pooled_vectors
from varve.encoder.model.fused_linear import has_batch_invariant_linears, linear_backend
from varve.encoder.model.layer_hooks import LayerHooks, compile_layers, drop_layers_above
from varve.encoder.model.parity_check import check_head, choose_layout, is_cls_only_exact
from varve.encoder.model.token_heads import TokenHeads
from varve.encoder.pack_executor import PackExecutor, available_cores
from varve.encoder.packing import Pack, pack_windows
from varve.encoder.pending_call import PendingCall
from varve.encoder.ragged import Columns
from varve.encoder.results import HostVectors, Results
from varve.encoder.row_heads import RowHeads
from varve.errors import JobError, RunError
from varve.preprocessing.tokens import Tokens


class Encoder:
    """A loaded checkpoint that computes features."""

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
        """Load a model and compare it with eager transformers.

        Args:
            model: Hub id, folder, or the model section of a job.
            features: name → definition, or its short form such as "mean@-1+normalize". Default: "embedding", what the
                checkpoint declares (pool declared), or the mean of the last layer if it declares nothing.
            output_dtype: float32, float16, int8 or binary.
            tokens_per_pack: maximum number of tokens in one forward pass. Default: depends on device and model.
            device: "cpu" or "cuda". Default: CUDA if available.
            threads: packs that run at the same time on a CPU, each on one core. Default: all available cores.
            compiled: run the layers through torch.compile. CUDA only: it is slower on a CPU.
            checkpoint: result of `inspect_checkpoint` for this model, if the caller has it.

        Raises:
            JobError: the model cannot be loaded, or it cannot compute one of the features.
        """
        spec = validate_section(Model, {"name": model}, "model") if isinstance(model, str) else model
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.checkpoint = checkpoint or inspect_checkpoint(
            spec.name,
            spec.revision,
            trust_remote_code=spec.trust_remote_code,
            role=spec.role,
            prompt=spec.prompt,
        )
        self._spec = spec
        definitions = parse_features(features or default_features(self.checkpoint))
        self.feature_plan = make_feature_plan(spec, definitions, self.checkpoint, output_dtype)
        self.max_tokens = resolve_max_tokens(spec, self.checkpoint, self.feature_plan)
        self.dtype = resolve_dtype(spec.dtype, self.device.type)
        self.tokens_per_pack = tokens_per_pack or default_tokens_per_pack(self.device.type, self.checkpoint)
        self.threads = threads or available_cores()
        self.compiled = compiled and self.device.type == "cuda"
        self.tokenizer = make_tokenizer(spec, self.checkpoint, self.feature_plan)
        self._load()

    def _load(self) -> None:
        """Load in float32, compare with eager transformers, then drop the upper layers, cast, and start the executor.

        Parity is checked before the cast, since half precision would hide small errors.
        """
        library = find_cpu_library() if self.device.type == "cpu" and self.dtype == "float32" else None
        try:
            hooks = self._load_checked(library)
        except JobError:
            if library is None:
                raise
            # The CPU library replaced layers whose code looks like a known pattern but computes something else.
            hooks = self._load_checked(None)
        if self.feature_plan.attention_layers:
            self._model.set_attn_implementation("eager")
            self.layout, self.layout_reason = "dense", "attentions were asked for: windows of equal length, no padding"
        elif self._masks_tokens():
            self._model.set_attn_implementation("eager")
            self.layout, self.layout_reason = "dense", "queries are expanded by tokens that are not attended to"
        self._row_heads = RowHeads(self.feature_plan, self.checkpoint, self.device)
        forward = self._make_forward(self._model, self._whole_model, hooks, self.dtype)
        shape = self.checkpoint.shape
        self.linear = linear_backend(self._model)
        head_dim = shape.hidden_size // shape.num_heads
        self.attention = attention_backend(self._model, head_dim) if self.layout == "packed" else "torch"
        self.max_pack_tokens = measure_max_pack_tokens(forward, self.device, self.max_tokens)
        self._executor = PackExecutor.for_device(
            self.device,
            forward,
            self.threads,
            make_fallback=self._make_bfloat16_forward if self.dtype == "float16" else None,
            max_pack_tokens=self.max_pack_tokens,
            split_last=self._is_batch_invariant(),
        )

    def _load_checked(self, library: CpuLibrary | None) -> LayerHooks:
        """Load the model and choose its layout; with a CPU library, replace its linear layers first."""
        needs_logits = self.feature_plan.wants("logits")
        head = "classification" if needs_logits else "masked_lm" if self.feature_plan.masked_lm_heads else "none"
        self._model, self._whole_model = load_model(self.checkpoint, head=head, device=self.device)
        hooks, positions = LayerHooks(self._model), self.checkpoint.max_positions
        if self._classifier is not None:
            check_head(self._classifier, positions, token_types=self.tokenizer.gives_types)
        self._token_heads = TokenHeads.load(
            self.feature_plan,
            self.checkpoint,
            self.device,
            self._whole_model,
            token_types=self.tokenizer.gives_types,
        )
        self.layout, self.layout_reason = self._choose_layout(self._model, hooks, library)
        return hooks

    def _choose_layout(
        self, model: PreTrainedModel, hooks: LayerHooks, library: CpuLibrary | None = None
    ) -> tuple[str, str]:
        return choose_layout(
            model,
            hooks,
            self.checkpoint.max_positions,
            self.max_tokens,
            token_types=self.tokenizer.gives_types,
            library=library,
        )

    def _make_forward(
        self, model: PreTrainedModel, whole_model: PreTrainedModel | None, hooks: LayerHooks, dtype: str
    ) -> Forward:
        drop_layers_above(model, self.feature_plan.top_layer)
        cls_only_layer = self._find_cls_only_layer(model)
        (whole_model or model).to(getattr(torch, dtype))
        self.compiled = self.compiled and compile_layers(model)
        self.top_layer = "all tokens" if cls_only_layer is None else "first tokens"
        return Forward(
            model,
            hooks,
            self.feature_plan,
            packed=self.layout == "packed",
            token_types=self.tokenizer.gives_types,
            cls_only_layer=cls_only_layer,
            heads=self._token_heads,
            prompt_tokens=self.tokenizer.prompt_tokens,
        )

    def _find_cls_only_layer(self, model: PreTrainedModel) -> ClsOnlyLayer | None:
        """The highest layer computed for CLS tokens only, if no feature needs other tokens and the numbers agree."""
        if self.layout != "packed" or self.compiled or not needs_only_cls_of_top_layer(self.feature_plan, model):
            return None
        layer = ClsOnlyLayer.of(model)
        return layer if layer and is_cls_only_exact(model, layer, self.checkpoint.max_positions) else None

    def _make_bfloat16_forward(self) -> Forward:
        """The same pass in bfloat16, which has the range of float32, for windows that overflow in float16."""
        model, _ = load_model(self.checkpoint, head="none", device=self.device)
        hooks = LayerHooks(model)
        if self.layout == "packed":
            self._choose_layout(model, hooks)
        else:
            model.set_attn_implementation(self._model.config._attn_implementation or "eager")  # noqa: SLF001 (no public name)
        return self._make_forward(model, None, hooks, "bfloat16")

    def _is_batch_invariant(self) -> bool:
        """Whether the bits of a window do not depend on the other windows of its pack."""
        heads = self._token_heads is None or self._token_heads.is_batch_invariant
        return heads and self.attention != "torch" and has_batch_invariant_linears(self._model)

    def _masks_tokens(self) -> bool:
        """Whether some tokens are not attended to, which packed attention cannot express."""
        expansion = text_rules(self._spec, self.feature_plan, self.checkpoint).expansion
        return expansion is not None and not expansion.attend

    @property
    def num_parameters(self) -> int:
        """Number of parameters in memory, without those of dropped layers."""
        return sum(parameter.numel() for parameter in (self._whole_model or self._model).parameters())

    @property
    def _classifier(self) -> PreTrainedModel | None:
        """The classification model around the encoder, if logits are needed."""
        return self._whole_model if self.feature_plan.wants("logits") else None

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Columns:
        """Encode R texts or sentence pairs.

        Returns:
            {column: (R, width) array or `Ragged`}, with the columns `num_tokens` and `truncated`.

        Raises:
            JobError: an argument is not a list of strings, pairs are combined with windows, or the model cannot encode
                one of the texts.
            RunError: a text does not fit into the device's memory, or one of its features is not finite.
        """
        check_texts(texts, pairs, windows=self.tokenizer.cuts_windows)
        tokens = self.tokenizer(texts, pairs)
        return {**self.encode(tokens), "num_tokens": tokens.num_tokens, "truncated": tokens.truncated}

    def encode(self, tokens: Tokens) -> Columns:
        """All feature columns of the texts, in their order.

        Raises:
            JobError: see `start`.
            RunError: a text does not fit into the device's memory, or one of its features is not finite.
        """
        encoded = self.start(tokens).result()
        for text, reason in encoded.reasons.items():
            msg = f"text {text}: {reason}"
            raise RunError(msg)
        return encoded.columns

    def start(self, tokens: Tokens) -> PendingCall:
        """Queue the packs of the texts and return at once, so that the device has work before `result` is called.

        Raises:
            JobError: a text has no tokens, or a token for which the model has no embedding.
        """
        for text, reason in self.tokenizer.find_unencodable(tokens).items():
            msg = f"text {text}: {reason}. Remove it"
            raise JobError(msg)
        distinct, inverse = find_distinct(tokens)
        lengths = tokens.lengths[distinct]
        pooled = pooled_vectors(self.feature_plan, self._model)
        num_chunks = None if tokens.cu_chunks is None else np.diff(tokens.cu_chunks)[distinct]
        results = Results(self.feature_plan, pooled, lengths, self.checkpoint.shape, num_chunks)
        if not self.feature_plan.needs_model:
            results.mark_done(len(lengths))
            return PendingCall(self.feature_plan, self._add_head_outputs, tokens, inverse, results, self._row_heads)
        equal = bool(self.feature_plan.attention_layers)
        packs = list(pack_windows(lengths, self.tokens_per_pack, padded=self.layout == "dense", equal=equal))
        results.count(repeats=len(inverse) - len(distinct), packs=len(packs), packed_tokens=int(lengths.sum()))
        # Packs with the longest windows run first: short ones at the end keep all lanes busy until the queue is empty.
        queue = [Pack.of(tokens, distinct[windows], windows) for windows in reversed(packs)]
        self._executor.submit(queue, results)
        return PendingCall(self.feature_plan, self._add_head_outputs, tokens, inverse, results, self._row_heads)

    def _add_head_outputs(self, vectors: HostVectors) -> None:
        has_pooler = self.checkpoint.shape.has_pooler
        add_head_outputs(vectors, self.feature_plan, self._model, self._classifier, has_pooler=has_pooler)
