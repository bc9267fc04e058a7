"""An inspected checkpoint: its folders, hashes, shape and what it declares. Holds no weights."""

from dataclasses import dataclass
from pathlib import Path

from varve.encoder.checkpoint.declaration import Declaration
from varve.encoder.feature_plan import ModelShape


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An inspected checkpoint; its weights are not loaded."""

    name: str  # as the job names it, for messages
    root: str  # folder that holds modules.json, if there is one
    commit: str | None  # of a Hub id; None for a local folder
    shape: ModelShape
    max_positions: int | None  # maximum number of tokens of a window; None: no limit
    vocab_size: int | None  # number of token embeddings; None: unknown
    weights_sha256: str
    tokenizer_sha256: str
    config_sha256: str
    trust_remote_code: bool
    body: str = ""  # folder of the encoder, relative to the root
    tokenizer: str = ""  # folder of the tokenizer, relative to the root
    declaration: Declaration | None = None  # of the job's role; None: nothing, or nothing that can be computed
    problem: str | None = None  # why the declared vectors cannot be computed

    @property
    def folder(self) -> str:
        """The encoder's folder."""
        return str(Path(self.root, self.body))

    @property
    def tokenizer_folder(self) -> str:
        """The tokenizer's folder."""
        return str(Path(self.root, self.tokenizer))
