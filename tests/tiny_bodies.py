"""Tiny random encoders, with the tokenizer of MiniLM and a tenth of its vocabulary, and checkpoints made of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from tests.models import ARCHITECTURES

WIDTH, MAX_TOKENS, VOCABULARY = 32, 64, 3000


@dataclass
class Bodies:
    """Tiny random encoders of one architecture, each saved once."""

    root: Path
    minilm: str
    architecture: str = "bert"
    saved: dict[Any, str] = field(default_factory=dict)

    def __call__(self, auto: Any = AutoModel, seed: int = 0) -> str:
        if (auto, seed) not in self.saved:
            torch.manual_seed(seed)
            sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128}
            sizes |= {"vocab_size": VOCABULARY}
            config = AutoConfig.for_model(self.architecture, **ARCHITECTURES[self.architecture] | sizes)
            folder = self.new_folder()
            shake(auto.from_config(config)).save_pretrained(folder)
            self._save_tokenizer(folder)
            self.saved[auto, seed] = str(folder)
        return self.saved[auto, seed]

    def _save_tokenizer(self, folder: Path) -> None:
        """Save the tokenizer with the first part of its vocabulary, so that tests load it quickly."""
        AutoTokenizer.from_pretrained(self.minilm, model_max_length=128).save_pretrained(folder)
        content = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"]
        content["model"]["vocab"] = {token: place for token, place in vocabulary.items() if place < VOCABULARY}
        (folder / "tokenizer.json").write_text(json.dumps(content))

    def new_folder(self) -> Path:
        """An empty folder."""
        return Path(mkdtemp(dir=self.root))


def shake(module: Any) -> Any:
    """Change all parameters a little, so that biases are not 0 and the weights of norms not 1."""
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return module


def save(modules: list[Any], bodies: Bodies, library: Any = SentenceTransformer, **options) -> Path:
    folder = bodies.new_folder()
    library(modules=modules, device="cpu", **options).save_pretrained(str(folder), create_model_card=False)
    return folder
