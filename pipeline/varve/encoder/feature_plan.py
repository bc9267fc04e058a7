"""The plan of an encoder's features: the layers that run, what is kept of each, and the columns of the output.

Knows a model only by its `ModelShape`; imports neither torch nor Arrow. Invariant: no column of the plan needs a layer
above `FeaturePlan.top_layer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from varve.encoder.checkpoint.head import Head, Pooling, Splade, TokenPooling, TokenWeights

POOLED = frozenset({"cls", "mean", "max", "last"})  # poolings of token vectors
CHUNK_POOLS = frozenset({"mean", "max"})  # poolings of the tokens of a chunk
ROW_COLUMNS = ("num_tokens", "truncated", "error", "shard", "row")
TOKEN_COLUMNS = ("input_ids", "offsets", "sequence_ids")
SPAN_COLUMNS = {"windows": "windows", "chunks": "chunks"}  # form → column with the character spans
# Modes of a checkpoint's Pooling → the pooling of token vectors.
POOL_OF_MODE = {"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len", "weightedmean": "weighted_mean"}
OF_TEXT = "_of_text"  # ends the name of a pooling that leaves out the tokens of the prompt


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The properties of a checkpoint that decide which features it has."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_labels: int  # outputs of the classification head; 0 without a head
    has_pooler: bool  # the checkpoint has pooler weights
    vocab_size: int = 0  # outputs of the masked-LM head; 0 without a head


@dataclass(frozen=True, slots=True)
class Column:
    """One feature column of the output.

    `layers` holds one layer, or the layers that `combine` combines. `form` is the content of a row: one vector, a list
    of vectors (one per window, chunk or token), a flat list of heads x T x T attention weights, where T is
    `num_tokens`, a sparse vector (two lists: ids and weights), or, for late interaction, one vector per kept token
    ("late") or cluster of tokens ("clusters").
    """

    name: str
    pool: str
    layers: tuple[int, ...]
    combine: str | None
    normalize: bool
    width: int  # dimensions of a vector; heads for attentions
    dtype: str  # float32 | float16 | int8 | binary
    form: str  # vector | windows | chunks | tokens | attentions | sparse | late | clusters

    @property
    def scale_name(self) -> str | None:
        """Name of the column with the scales of int8 values, if any."""
        return f"{self.name}_scale" if self.dtype == "int8" else None

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names of the columns that hold the feature in the output."""
        if self.form == "sparse":
            return (f"{self.name}_ids", f"{self.name}_weights")
        names = (self.name, self.scale_name) if self.scale_name else (self.name,)
        return (*names, f"{self.name}_input_ids", f"{self.name}_offsets") if self.form == "late" else names

    @property
    def feature(self) -> str:
        """Name of the feature: the column's name without a layer suffix."""
        return self.name.removesuffix(layer_suffix(self.layers[0])) if len(self.layers) == 1 else self.name


@dataclass(frozen=True, slots=True)
class FeaturePlan:
    """What an encoder computes: the layers that run, the vectors pooled from each layer, and the output's columns."""

    columns: tuple[Column, ...]
    top_layer: int
    num_layers: int
    special_tokens: bool  # token columns include special tokens
    heads: Mapping[str, Head] = field(default_factory=dict)  # column → what is computed from the last layer

    def pools(self, column: Column) -> tuple[str, ...]:
        """The poolings of token vectors that a column needs; several are concatenated."""
        head = self.heads.get(column.name)
        if head is None:
            return (column.pool,) if column.pool in POOLED else ()
        if not isinstance(head.pooling, Pooling):
            return ()
        suffix = "" if head.pooling.include_prompt else OF_TEXT
        return tuple(POOL_OF_MODE.get(mode, mode) + suffix for mode in head.pooling.modes)

    @property
    def pooled(self) -> frozenset[tuple[str, int]]:
        """Every (pool, layer) that is pooled from token vectors."""
        return frozenset((pool, layer) for c in self.columns for pool in self.pools(c) for layer in c.layers)

    @property
    def token_heads(self) -> dict[str, Head]:
        """Column → head whose `token_steps` give one vector per token."""
        return {name: head for name, head in self.heads.items() if head.token_steps or head.kind == "late"}

    @property
    def token_poolings(self) -> dict[str, TokenPooling]:
        """Column of late interaction → how the vectors of its tokens are pooled when a part is written."""
        return {name: head.token_pooling for name, head in self.heads.items() if head.token_pooling}

    def token_widths(self, hidden_size: int) -> dict[int | str, int]:
        """Layer, or column of a head → dimensions of its token vectors, which are kept."""
        heads = {name: head.width(hidden_size) for name, head in self.token_heads.items()}
        return dict.fromkeys(self.token_layers, hidden_size) | heads

    @property
    def masked_lm_heads(self) -> dict[str, Splade]:
        """Column → how the masked-LM head's output is reduced."""
        return {name: head.pooling for name, head in self.heads.items() if isinstance(head.pooling, Splade)}

    @property
    def needs_model(self) -> bool:
        """Whether a column needs a forward pass, and not the tokens alone."""
        fixed = [name for name, head in self.heads.items() if isinstance(head.pooling, TokenWeights)]
        return len(fixed) < len(self.columns)

    @property
    def needs_spans(self) -> bool:
        """Whether columns need the character span of each token, or need to know which tokens are special."""
        forms = {c.form for c in self.columns}
        return bool(self.span_columns or forms & {"tokens", "late", "clusters", "sparse"})

    @property
    def token_layers(self) -> frozenset[int]:
        """Layers whose token vectors are kept."""
        return frozenset(layer for c in self.columns if c.form == "tokens" for layer in c.layers)

    @property
    def attention_layers(self) -> frozenset[int]:
        """Layers whose attention weights are kept."""
        return frozenset(layer for c in self.columns if c.form == "attentions" for layer in c.layers)

    def wants(self, pool: str) -> bool:
        """Whether any column uses this pooling."""
        return any(c.pool == pool for c in self.columns)

    @property
    def span_columns(self) -> list[str]:
        """Columns with the character spans of windows or chunks."""
        forms = {c.form for c in self.columns}
        return [column for form, column in SPAN_COLUMNS.items() if form in forms]

    def names(self, *, pairs: bool = False) -> list[str]:
        """Names of all feature columns, in the order of the output."""
        names = [name for c in self.columns for name in c.stored_names]
        if self.wants("tokens"):
            names += TOKEN_COLUMNS if pairs else TOKEN_COLUMNS[:2]
        return [*names, *self.span_columns]


def layer_suffix(layer: int) -> str:
    """Ends the name of each column of a feature with several layers."""
    return f"_{layer:02d}"
