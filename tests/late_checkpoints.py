"""Checkpoints of late interaction: of sentence-transformers, and with the files of PyLate and Stanford's ColBERT."""

import json
import shutil
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from torch.nn import Identity

from tests.tiny_bodies import MAX_TOKENS, WIDTH, Bodies, save


def late_checkpoint(
    bodies: Bodies, *more: Any, expansion: Any = None, words: Iterable[str] = string.punctuation, **options
) -> Path:
    expansion = expansion or {"strategy": "fixed", "length": 16, "attend": False}
    lengths = {"document_length": 48, "query_expansion": expansion, "max_seq_length": MAX_TOKENS}
    torch.manual_seed(1)
    at_tokens: Any = {"module_input_name": "token_embeddings"}
    dense = Dense(WIDTH, 8, bias=False, activation_function=Identity(), **at_tokens)
    modules = [Transformer(bodies(), **lengths), dense, MultiVectorMask(list(words)), Normalize(**at_tokens), *more]
    return save(modules, bodies, MultiVectorEncoder, **options)


def pylate_checkpoint(
    bodies: Bodies, *, expansion: bool = True, markers: tuple[str, str] = ("[unused0] ", "[unused1] ")
) -> Path:
    """PyLate saves a Transformer and a Dense only; its settings imply the mask and the normalization."""
    folder = late_checkpoint(bodies)
    modules = json.loads((folder / "modules.json").read_text())[:2]
    modules[1]["type"] = "pylate.models.Dense.Dense"
    dense = json.loads((folder / "1_Dense/config.json").read_text())
    settings = {
        "model_type": "ColBERT",
        "__version__": {"sentence_transformers": "5.1.1"},
        "prompts": {"query": "", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "MaxSim",
        "query_prefix": markers[0],
        "document_prefix": markers[1],
        "query_length": 24,
        "document_length": 40,
        "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
        "do_query_expansion": expansion,
    }
    contents = {
        "modules.json": modules,
        "1_Dense/config.json": {key: value for key, value in dense.items() if not key.startswith("module_")},
        "sentence_bert_config.json": {"max_seq_length": 63, "do_lower_case": False},
        "config_sentence_transformers.json": settings,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def stanford_checkpoint(bodies: Bodies) -> Path:
    """Stanford's ColBERT: one file of weights with the projection in it, and its own settings."""
    folder = bodies.new_folder() / "colbert"
    shutil.copytree(bodies(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["HF_ColBERT"]}))
    weights = load_file(folder / "model.safetensors")
    weights = {f"{bodies.architecture}.{name}": weight for name, weight in weights.items()}
    torch.manual_seed(1)
    weights["linear.weight"] = torch.randn(8, WIDTH) * 0.2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_maxlen": 24,
        "doc_maxlen": 40,
        "attend_to_mask_tokens": False,
        "mask_punctuation": True,
        "dim": 8,
    }
    (folder / "artifact.metadata").write_text(json.dumps(settings))
    return folder
