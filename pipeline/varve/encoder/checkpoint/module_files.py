"""Reads the modules of a checkpoint in the order in which sentence-transformers runs them.

Standard library only; runs no module and reads no weights but their shapes. Knows current and older names of keys.
Invariant: a module, or a value of a module, that this version does not compute is refused with its name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from varve.encoder.checkpoint.dense_module import read_dense
from varve.encoder.checkpoint.head import (
    MODES,
    LayerNorm,
    Normalize,
    Pooling,
    Splade,
    Step,
    TokenMask,
    TokenPooling,
    TokenWeights,
)
from varve.encoder.checkpoint.head_weights import find_weights
from varve.encoder.checkpoint.small_files import OTHERS, JsonObject, SmallFiles

MODULES = "modules.json"
TOKENS, ROW = "token_embeddings", "sentence_embedding"
_TEXT_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Older keys of a Pooling module → mode, in the order in which their vectors are concatenated.
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_TRANSFORMERS = ("Transformer", "MLMTransformer")


@dataclass(slots=True)
class ModuleReader:
    """Collects the modules of one role."""

    files: SmallFiles
    role: str
    late: bool  # the checkpoint is one of late interaction
    text_defaults: Mapping[str, Any]  # for keys that the Transformer's own file lacks
    text: JsonObject = field(default_factory=JsonObject)  # of the Transformer: lengths and query expansion
    body: str | None = None
    tokenizer: str | None = None
    masked_lm: bool = False
    token_steps: list[Step] = field(default_factory=list)
    pooling: Pooling | Splade | TokenWeights | None = None
    row_steps: list[Step] = field(default_factory=list)
    mask: TokenMask | None = None
    token_pooling: TokenPooling | None = None
    has_roles: bool = False  # a Router sends queries and documents through different modules

    @property
    def task(self) -> str:
        """The role of the texts for masks: texts without a role are documents."""
        return "query" if self.role == "query" else "document"

    def read_modules(self, modules: Sequence[Mapping[str, Any]]) -> None:
        """Read all modules of modules.json.

        Raises:
            JobError: a module is unknown, or one of its files is missing or malformed.
        """
        for module in modules:
            entry = JsonObject(MODULES, self.files.name, module)
            self._read_module(entry.text("type") or "", self.files.path(entry.text("path") or ""))

    def _read_module(self, kind: str, path: str) -> None:
        known = {
            "Transformer": self._read_transformer,
            "MLMTransformer": self._read_transformer,
            "Router": self._read_router,
            "Asym": self._read_router,
            "Pooling": self._read_pooling,
            "Dense": self._read_dense,
            "LayerNorm": self._read_layer_norm,
            "Normalize": self._read_normalize,
            "Dropout": lambda _kind, _path: None,
            "SpladePooling": self._read_splade,
            "SparseStaticEmbedding": self._read_token_weights,
            "MultiVectorMask": self._read_mask,
            "HierarchicalTokenPooling": self._read_token_pooling,
        }
        name = kind.rpartition(".")[2]
        if name not in known:
            problem = f"{MODULES} has the module {kind or 'without a type'}, which this version does not compute"
            self.files.refuse(problem, f"It computes {', '.join(known)}. {OTHERS}")
        known[name](name, path)

    def _read_transformer(self, kind: str, path: str) -> None:
        self._set_tokenizer(path)
        self.body = path
        files = (self.files.read_if_exists(path, file) for file in _TEXT_FILES)
        found = next((file for file in files if file.content), None)
        own = found or JsonObject(self.files.path(path, _TEXT_FILES[0]), self.files.name, {})
        self.text = JsonObject(own.file, own.name, {**self.text_defaults, **own.content})
        task = self.text.text("transformer_task") or "feature-extraction"
        self.masked_lm = kind == "MLMTransformer" or task == "fill-mask"
        if task not in {"feature-extraction", "fill-mask"}:
            self.files.refuse(f"its Transformer has the task {task!r}, which gives no vectors", OTHERS)
        self._check_inputs()

    def _check_inputs(self) -> None:
        """Refuse a Transformer that wraps its texts into messages, or returns other values than token vectors."""
        kinds = self.text.mapping("modality_config")
        if kinds.content and ("text" not in kinds or "message" in kinds):
            self.text.refuse("modality_config", "the modality text, without a chat template")
        kinds.mapping("text").choice("method_output_name", ("last_hidden_state", "logits"), "last_hidden_state")
        self.text.choice("module_output_name", (TOKENS,), TOKENS)
        if self.text.mapping("processing_kwargs").content:
            self.text.refuse("processing_kwargs", "no options of the tokenizer")

    def _read_router(self, _kind: str, path: str) -> None:
        if self.has_roles:
            self.files.refuse(f"{path} is a Router within another one", OTHERS)
        self.has_roles = True
        router = self.files.read_if_exists(path, "router_config.json")
        router = router if router.content else self.files.read(path, "config.json")  # the name for Asym
        routes, types, options = (router.mapping(key) for key in ("structure", "types", "parameters"))
        if options.mapping("route_mappings").content:
            options.refuse("route_mappings", "none: texts are sent by their role")
        default = options.text("default_route") or next(iter(routes.content), "")
        route = default if self.role == "none" else self.role
        if route not in routes:
            self.files.refuse(
                f"{router.file} has no route {route!r}, but {', '.join(routes.content) or 'none'}",
                "Write another model.role",
            )
        for module in routes.texts(route) or ():
            self._read_module(types.text(module) or "", self.files.path(path, module))
        self.body = self.body if self.body is not None else self._find_transformer(path, types)

    def _find_transformer(self, path: str, types: JsonObject) -> str | None:
        """The Transformer of another route, for features of layers in a job whose route has none."""
        names = (name for name in types.content if (types.text(name) or "").rpartition(".")[2] in _TRANSFORMERS)
        return next((self.files.path(path, name) for name in names), None)

    def _read_pooling(self, _kind: str, path: str) -> None:
        config = self.files.read(path, "config.json")
        modes = config.texts("pooling_mode")
        if modes is None:
            modes = tuple(mode for key, mode in _OLD_MODES.items() if config.flag(key)) or ("mean",)
        if not modes or not set(modes) <= set(MODES):
            config.refuse("pooling_mode", f"one or more of {', '.join(MODES)}")
        if self.masked_lm:
            self.files.refuse(f"{path} pools the output of a masked-LM head", OTHERS)
        self._set_pooling(Pooling(modes, include_prompt=config.flag("include_prompt", default=True)), path)

    def _read_dense(self, _kind: str, path: str) -> None:
        config = self.files.read(path, "config.json")
        place = config.choice("module_input_name", (TOKENS, ROW), TOKENS if self.late else ROW)
        config.choice("module_output_name", (place,), place)
        self.add_step(read_dense(self.files, path, config), place, path)

    def _read_layer_norm(self, _kind: str, path: str) -> None:
        self.files.read_if_exists(path, "config.json")
        weights = find_weights(self.files.root, path, self.files.name, "norm.weight", "norm.bias")
        self.files.names.append(weights.file)
        features = weights.length("norm.weight")
        weights.check_shape("norm.bias", features)
        self.add_step(LayerNorm(weights.file, features), ROW, path)

    def _read_normalize(self, _kind: str, path: str) -> None:
        config = self.files.read_if_exists(path, "config.json")
        place = config.choice("module_input_name", (TOKENS, ROW), ROW)
        config.choice("module_output_name", (place,), place)
        if place == TOKENS or self.pooling:  # without a vector of the row, the module does nothing
            self.add_step(Normalize(), place, path)

    def add_step(self, step: Step, place: str, path: str) -> None:
        """Add what is applied to each token's vector, or to the row's vector.

        Raises:
            JobError: a step cannot be computed in this place.
        """
        fits = isinstance(self.pooling, Pooling) if place == ROW else self.late and not self.token_pooling
        if not fits:
            self.files.refuse(f"{MODULES} applies {step} ({path}) in a place that is not supported", OTHERS)
        (self.token_steps if place == TOKENS else self.row_steps).append(step)

    def _read_splade(self, _kind: str, path: str) -> None:
        config = self.files.read_if_exists(path, "config.json")
        strategy = config.choice("pooling_strategy", ("max", "sum"), "max")
        activation = config.choice("activation_function", ("relu", "log1p_relu"), "relu")
        if not self.masked_lm:
            self.files.refuse(f"{path} needs the masked-LM head, but the Transformer has none", OTHERS)
        self._set_pooling(Splade(strategy, twice=activation == "log1p_relu"), path)

    def _read_token_weights(self, _kind: str, path: str) -> None:
        if (config := self.files.read_if_exists(path, "config.json")).text("path"):
            config.refuse("path", "none: save the model again, which writes model.safetensors")
        weights = find_weights(self.files.root, path, self.files.name, "weight")
        self.files.names.append(weights.file)
        self._set_tokenizer(path)
        self._set_pooling(TokenWeights(weights.file, weights.length("weight")), path)

    def _read_mask(self, _kind: str, path: str) -> None:
        config = self.files.read_if_exists(path, "config.json")
        words, kept = config.texts("skiplist_words"), config.counts("keep_only_token_ids")
        is_skipping = self.task in (config.texts("skiplist_tasks") or ("document",))
        if self.mask or self.token_pooling or not self.late:
            self.files.refuse(f"{path} masks tokens in a place that is not supported", OTHERS)
        self.mask = TokenMask((words or ()) if is_skipping else (), () if self.role == "query" else kept or ())

    def _read_token_pooling(self, _kind: str, path: str) -> None:
        config = self.files.read_if_exists(path, "config.json")
        if self.task in (config.texts("tasks") or ("document",)):
            protected = config.count("num_protected_tokens", least=0)
            self.token_pooling = TokenPooling(
                factor=config.number("pool_factor") or 1.0,
                protected=1 if protected is None else protected,
                normalize=config.flag("normalize_embeddings"),
            )

    def _set_tokenizer(self, path: str) -> None:
        if self.tokenizer is not None:
            self.files.refuse(f"{MODULES} has two modules that read texts, the second in {path!r}", OTHERS)
        self.tokenizer = path

    def _set_pooling(self, pooling: Pooling | Splade | TokenWeights, path: str) -> None:
        if self.pooling or self.late:
            self.files.refuse(f"{MODULES} applies {pooling} ({path}) in a place that is not supported", OTHERS)
        self.pooling = pooling
