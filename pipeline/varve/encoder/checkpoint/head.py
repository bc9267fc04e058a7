"""Heads: what a checkpoint computes from the token vectors of its last layer, as frozen types without weights.

Standard library only; the encoder and the canary apply them, each in its own code. Invariant: a head is complete; what
is not represented here is refused when it is read. Paths are relative to the checkpoint's root folder.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from varve.errors import JobError

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = ("identity", "tanh", "gelu", "relu", "silu", "sigmoid")


@dataclass(frozen=True, slots=True)
class Pooling:
    """One vector per text from its token vectors: the vectors of one or more modes, concatenated."""

    modes: tuple[str, ...]  # of MODES
    include_prompt: bool  # the tokens of the prompt take part

    def __str__(self) -> str:
        text = " + ".join(self.modes)
        return text if self.include_prompt else f"{text} without the prompt"


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer: activation(x W' + b), plus x (or x R') if it is residual."""

    file: str  # with `weight` (out, in) and `bias` below `prefix`, and `residual.weight`; the last two are optional
    in_features: int
    out_features: int
    activation: str  # of ACTIVATIONS
    residual: bool
    prefix: str = "linear."

    def __str__(self) -> str:
        words = [f"Dense {self.in_features}→{self.out_features}"]
        words += [self.activation] if self.activation != "identity" else []
        return " ".join([*words, "residual"] if self.residual else words)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer normalization of a row's vector."""

    file: str  # with `norm.weight` and `norm.bias`
    features: int

    def __str__(self) -> str:
        return "LayerNorm"


@dataclass(frozen=True, slots=True)
class Normalize:
    """Scales each vector to Euclidean length 1."""

    def __str__(self) -> str:
        return "length 1"


Step = Dense | LayerNorm | Normalize


@dataclass(frozen=True, slots=True)
class Splade:
    """A weight for each token of the vocabulary, from the masked-LM head: log1p(relu(x)), reduced over the tokens.

    Source: Formal et al. 2021, SPLADE v2: Sparse Lexical and Expansion Model for Information Retrieval, equation 6.
    """

    strategy: str  # max | sum
    twice: bool = False  # log1p is applied twice

    def __str__(self) -> str:
        activation = "log1p(log1p(relu))" if self.twice else "log1p(relu)"
        return f"masked-LM head → {activation} → {self.strategy}"


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """A fixed weight for each token of the vocabulary that occurs in the text; the encoder is not run."""

    file: str  # with `weight` (vocabulary,)
    vocab_size: int

    def __str__(self) -> str:
        return "fixed weights of the tokens"


@dataclass(frozen=True, slots=True)
class LexicalWeights:
    """One weight per token (`token_steps` give it), reduced to the largest of each token id; special tokens have none.

    Source: Chen et al. 2024, M3-Embedding, section 3.2 (lexical retrieval).
    """

    vocab_size: int

    def __str__(self) -> str:
        return "largest weight of each token"


@dataclass(frozen=True, slots=True)
class TokenMask:
    """The tokens that a late-interaction model keeps."""

    skipped_words: tuple[str, ...] = ()  # their tokens are dropped, if the vocabulary has them
    kept_ids: tuple[int, ...] = ()  # if not empty, only these tokens are kept
    skips_first: bool = False

    def __str__(self) -> str:
        words = [f"only {len(self.kept_ids)} tokens of the vocabulary"] if self.kept_ids else []
        words += [f"without {len(self.skipped_words)} skipped words"] if self.skipped_words else []
        words += ["without the first token"] if self.skips_first else []
        return ", ".join(words) or "all tokens"


@dataclass(frozen=True, slots=True)
class TokenPooling:
    """Clusters the token vectors of a text by Ward's method and keeps the mean of each cluster."""

    factor: float  # tokens per cluster
    protected: int  # first tokens that stay as they are
    normalize: bool  # the means have length 1

    def __str__(self) -> str:
        return f"clusters of {self.factor:g} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What is computed from the token vectors of the last layer.

    Attributes:
        kind: one dense vector per text, a sparse one, or one vector per token (late interaction).
        token_steps: applied to each token vector, before `pooling`.
        pooling: None for late interaction.
        row_steps: applied to each row's vector, after `pooling`.
        mask: late interaction only.
        token_pooling: late interaction only; None: every kept token has a vector.
        max_active_dims: of a sparse vector; None: all.
    """

    kind: Literal["dense", "sparse", "late"]
    token_steps: tuple[Step, ...] = ()
    pooling: Pooling | Splade | TokenWeights | LexicalWeights | None = None
    row_steps: tuple[Step, ...] = ()
    mask: TokenMask = TokenMask()
    token_pooling: TokenPooling | None = None
    max_active_dims: int | None = None

    def width(self, hidden_size: int) -> int:
        """Dimensions of a dense vector or of a token's vector.

        Raises:
            JobError: the weights of a step are for vectors with other dimensions.
        """
        width = _width_after(self.token_steps, hidden_size)
        width *= len(self.pooling.modes) if isinstance(self.pooling, Pooling) else 1
        return _width_after(self.row_steps, width)

    @property
    def words(self) -> Iterator[str]:
        """A phrase for each step, in their order."""
        if self.kind == "late":
            yield f"token vectors ({self.mask})"
        yield from map(str, self.token_steps)
        if self.pooling:
            yield str(self.pooling)
        if self.max_active_dims:
            yield f"the {self.max_active_dims} largest weights"
        yield from map(str, self.row_steps)
        if self.token_pooling:
            yield str(self.token_pooling)


def _width_after(steps: tuple[Step, ...], width: int) -> int:
    for step in steps:
        match step:
            case Dense(file=file, in_features=expected) | LayerNorm(file=file, features=expected) if expected != width:
                msg = f"model.name: {file} is for vectors of {expected} dimensions, not of {width}. Download it again"
                raise JobError(msg)
            case Dense(out_features=out_features):
                width = out_features
    return width
