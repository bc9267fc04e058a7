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

from varve.config.feature import Feature
from varve.config.feature_shorthand import parse_features
from varve.config.model import Model
from varve.config.validation_errors import validate_section
from varve.encoder.arguments import check_texts
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.defaults import (
    default_tokens_per_pack,
    make_feature_plan,
    make_tokenizer,
    resolve_dtype,
    resolve_max_tokens,
)
from varve.encoder.checkpoint.heads import default_features, text_rules
from varve.encoder.checkpoint.inspection import inspect_checkpoint
from varve.encoder.deduplication import find_distinct
from varve.encoder.head_outputs import add_head_outputs
from varve.encoder.loaded_model import LoadedModel, RunSettings
from varve.encoder.memory_budget import measure_max_pack_tokens
from varve.encoder.model.forward import pooled_vectors
from varve.encoder.pack_executor import PackExecutor, available_cores
from varve.encoder.packing import Index, Pack, pack_windows
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
        fast_tokenizer: bool = True,
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
            fast_tokenizer: use a faster implementation where it gives the tokens of `tokenizers`.
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
        definitions = parse_features(features or default_features(self.checkpoint))
        self.feature_plan = make_feature_plan(spec, definitions, self.checkpoint, output_dtype)
        self.max_tokens = resolve_max_tokens(spec, self.checkpoint, self.feature_plan)
        self.dtype = resolve_dtype(spec.dtype, self.device.type)
        self.tokens_per_pack = tokens_per_pack or default_tokens_per_pack(self.device.type, self.checkpoint)
        self.threads = threads or available_cores()
        self.tokenizer = make_tokenizer(spec, self.checkpoint, self.feature_plan, fast=fast_tokenizer)
        expansion = text_rules(spec, self.feature_plan, self.checkpoint).expansion
        settings = RunSettings(
            device=self.device,
            dtype=self.dtype,
            compiled=compiled and self.device.type == "cuda",
            max_tokens=self.max_tokens,
            token_types=self.tokenizer.gives_types,
            prompt_tokens=self.tokenizer.prompt_tokens,
            masks_tokens=expansion is not None and not expansion.attend,
        )
        self._start(settings)

    def _start(self, settings: RunSettings) -> None:
        """Load the model and start the threads that run its packs."""
        loaded = LoadedModel(self.checkpoint, self.feature_plan, settings)
        self.layout, self.layout_reason, self.top_layer = loaded.layout, loaded.layout_reason, loaded.top_layer
        self.attention, self.linear, self.compiled = loaded.attention, loaded.linear, loaded.compiled
        self.num_parameters = loaded.num_parameters
        self.max_pack_tokens = measure_max_pack_tokens(loaded.forward, self.device, self.max_tokens)
        self._model, self._classifier = loaded.model, loaded.classifier
        self._row_heads = RowHeads(self.feature_plan, self.checkpoint, self.device)
        self._executor = PackExecutor.for_device(
            self.device,
            loaded.forward,
            self.threads,
            make_fallback=loaded.make_bfloat16_forward if self.dtype == "float16" else None,
            max_pack_tokens=self.max_pack_tokens,
            split_last=loaded.is_batch_invariant,
        )

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
        encoded = self.start(tokens).result(pools_tokens=True)
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
        if self.feature_plan.needs_model:
            self._submit(tokens, distinct, results)
        else:
            results.mark_done(len(lengths))
        results.count(repeats=len(inverse) - len(distinct))
        return PendingCall(self.feature_plan, self._add_head_outputs, tokens, inverse, results, self._row_heads)

    def _submit(self, tokens: Tokens, distinct: Index, results: Results) -> None:
        """Queue the packs of the distinct windows."""
        lengths, equal = tokens.lengths[distinct], bool(self.feature_plan.attention_layers)
        packs = list(pack_windows(lengths, self.tokens_per_pack, padded=self.layout == "dense", equal=equal))
        results.count(packs=len(packs), packed_tokens=int(lengths.sum()))
        if not packs:
            return
        windows = np.concatenate(packs)
        together = Pack.of(tokens, distinct[windows], windows)
        queue = list(together.split(np.cumsum([len(pack) for pack in packs]).tolist()))
        # Packs with the longest windows run first: short ones at the end keep all lanes busy until the queue is empty.
        self._executor.submit(queue[::-1], results)

    def _add_head_outputs(self, vectors: HostVectors) -> None:
        has_pooler = self.checkpoint.shape.has_pooler
        add_head_outputs(vectors, self.feature_plan, self._model, self._classifier, has_pooler=has_pooler)
