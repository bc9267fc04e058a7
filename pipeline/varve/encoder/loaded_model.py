"""A checkpoint's model on a device, checked against eager transformers, with the layout in which it runs.

Knows the feature plan, but no texts, packs and threads. Invariants: the numbers are compared before the model is cast,
since half precision would hide small errors; layers above the highest one needed are not kept.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.loading import load_model
from varve.encoder.feature_plan import FeaturePlan
from varve.encoder.kernels.cpu_library import CpuLibrary, find_cpu_library, supports_bfloat16
from varve.encoder.model.attention import attention_backend
from varve.encoder.model.cls_only_layer import ClsOnlyLayer
from varve.encoder.model.forward import Forward, needs_only_cls_of_top_layer
from varve.encoder.model.fused_linear import has_batch_invariant_linears, linear_backend
from varve.encoder.model.layer_hooks import LayerHooks, compile_layers, drop_layers_above
from varve.encoder.model.parity_check import check_head, choose_layout, is_cls_only_exact, use_bfloat16
from varve.encoder.model.token_heads import TokenHeads
from varve.errors import JobError


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How a model runs.

    Attributes:
        device: cpu or cuda.
        dtype: float32, float16 or bfloat16.
        compiled: run layers through torch.compile.
        max_tokens: of a window.
        token_types: the checkpoint's tokenizer gives `token_type_ids`.
        prompt_tokens: first tokens of each window, which poolings of the text leave out.
        masks_tokens: some tokens of a window are not attended to.
    """

    device: torch.device
    dtype: str
    compiled: bool
    max_tokens: int
    token_types: bool
    prompt_tokens: int = 0
    masks_tokens: bool = False


class LoadedModel:
    """The model of an encoder, and the pass that runs its packs."""

    def __init__(self, checkpoint: Checkpoint, feature_plan: FeaturePlan, settings: RunSettings) -> None:
        """Load in float32, compare with eager transformers, then drop the upper layers and cast.

        On a CPU bfloat16 is the dtype of the weights in compiled code and of the inputs of its products; if it replaces
        no layer, torch runs the whole model in bfloat16.

        Raises:
            JobError: the model cannot be loaded, it cannot compute one of the features, or the CPU lacks bfloat16.
        """
        self._checkpoint, self._plan, self._settings = checkpoint, feature_plan, settings
        self.compiled = settings.compiled
        library, self._bfloat16_library = _find_libraries(settings)
        try:
            hooks = self._load_checked(library)
        except JobError:
            if library is None:
                raise
            # The CPU library replaced layers whose code looks like a known pattern but computes something else.
            hooks = self._load_checked(None)
        if reason := self._reason_against_packing():
            self.model.set_attn_implementation("eager")
            self.layout, self.layout_reason = "dense", reason
        self.forward = self._make_forward(self.model, self._whole_model, hooks, settings.dtype)
        shape = checkpoint.shape
        self.linear = linear_backend(self.model)
        head_dim = shape.hidden_size // shape.num_heads
        self.attention = attention_backend(self.model, head_dim) if self.layout == "packed" else "torch"

    @property
    def classifier(self) -> PreTrainedModel | None:
        """The classification model around the encoder, if logits are needed."""
        return self._whole_model if self._plan.wants("logits") else None

    @property
    def num_parameters(self) -> int:
        """Number of parameters in memory, without those of dropped layers."""
        return sum(parameter.numel() for parameter in (self._whole_model or self.model).parameters())

    @property
    def is_batch_invariant(self) -> bool:
        """Whether the bits of a window do not depend on the other windows of its pack."""
        heads = self._token_heads is None or self._token_heads.is_batch_invariant
        return heads and self.attention != "torch" and has_batch_invariant_linears(self.model)

    def make_bfloat16_forward(self) -> Forward:
        """The same pass in bfloat16, which has the range of float32, for windows that overflow in float16."""
        model, _ = load_model(self._checkpoint, head="none", device=self._settings.device)
        hooks = LayerHooks(model)
        if self.layout == "packed":
            self._choose_layout(model, hooks)
        else:
            model.set_attn_implementation(self.model.config._attn_implementation or "eager")  # noqa: SLF001 (no public name)
        return self._make_forward(model, None, hooks, "bfloat16")

    def _load_checked(self, library: CpuLibrary | None) -> LayerHooks:
        """Load the model and choose its layout; with a CPU library, replace its linear layers first."""
        needs_logits, needs_masked_lm = self._plan.wants("logits"), bool(self._plan.masked_lm_heads)
        head = "classification" if needs_logits else "masked_lm" if needs_masked_lm else "none"
        device, token_types = self._settings.device, self._settings.token_types
        self.model, self._whole_model = load_model(self._checkpoint, head=head, device=device)
        if self.classifier is not None:
            check_head(self.classifier, self._checkpoint.max_positions, token_types=token_types)
        self._token_heads = TokenHeads.load(
            self._plan, self._checkpoint, device, self._whole_model, token_types=token_types
        )
        hooks = LayerHooks(self.model)
        self.layout, self.layout_reason = self._choose_layout(self.model, hooks, library)
        return hooks

    def _choose_layout(
        self, model: PreTrainedModel, hooks: LayerHooks, library: CpuLibrary | None = None
    ) -> tuple[str, str]:
        positions, max_tokens = self._checkpoint.max_positions, self._settings.max_tokens
        token_types = self._settings.token_types
        return choose_layout(model, hooks, positions, max_tokens, token_types=token_types, library=library)

    def _reason_against_packing(self) -> str | None:
        if self._plan.attention_layers:
            return "attentions were asked for: windows of equal length, no padding"
        return "queries are expanded by tokens that are not attended to" if self._settings.masks_tokens else None

    def _make_forward(
        self, model: PreTrainedModel, whole_model: PreTrainedModel | None, hooks: LayerHooks, dtype: str
    ) -> Forward:
        drop_layers_above(model, self._plan.top_layer)
        cls_only_layer = self._find_cls_only_layer(model)
        if self._bfloat16_library and linear_backend(model) != "torch":
            positions, types = self._checkpoint.max_positions, self._settings.token_types
            packed = self.layout == "packed"
            use_bfloat16(model, self._bfloat16_library, positions, packed=packed, token_types=types)
        else:
            (whole_model or model).to(getattr(torch, dtype))
        self.compiled = self.compiled and compile_layers(model)
        self.top_layer = "all tokens" if cls_only_layer is None else "first tokens"
        return Forward(
            model,
            hooks,
            self._plan,
            packed=self.layout == "packed",
            token_types=self._settings.token_types,
            cls_only_layer=cls_only_layer,
            heads=self._token_heads,
            prompt_tokens=self._settings.prompt_tokens,
        )

    def _find_cls_only_layer(self, model: PreTrainedModel) -> ClsOnlyLayer | None:
        """The highest layer computed for CLS tokens only, if no feature needs other tokens and the numbers agree."""
        if self.layout != "packed" or self.compiled or not needs_only_cls_of_top_layer(self._plan, model):
            return None
        layer = ClsOnlyLayer.of(model)
        return layer if layer and is_cls_only_exact(model, layer, self._checkpoint.max_positions) else None


def _find_libraries(settings: RunSettings) -> tuple[CpuLibrary | None, CpuLibrary | None]:
    """The compiled code with float32 weights, and that with bfloat16 weights where the settings ask for them.

    Raises:
        JobError: the settings ask for bfloat16 on a CPU without its instructions.
    """
    if settings.device.type != "cpu" or settings.dtype == "float16":
        return None, None
    if settings.dtype == "float32":
        return find_cpu_library(), None
    if not supports_bfloat16():
        cpu = torch.cpu.get_capabilities()["cpu_name"]
        msg = f"model.dtype: bfloat16 needs AVX512-BF16 or AMX, which this CPU ({cpu}) lacks. Set dtype: float32"
        raise JobError(msg)
    bfloat16_library = find_cpu_library(torch.bfloat16)
    return (find_cpu_library(), bfloat16_library) if bfloat16_library else (None, None)
