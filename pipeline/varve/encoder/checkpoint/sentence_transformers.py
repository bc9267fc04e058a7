"""What sentence-transformers would do with a checkpoint beside running it: the modules of `modules.json`, and texts.

Reads the small files that say so. Knows nothing of weights, and runs nothing of it. Invariant: a file that is not
there, or is not as sentence-transformers writes it, says nothing.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from varve.encoder.feature_plan import POOLED, FeaturePlan

T = TypeVar("T", list, dict)

# What a feature can be, or what makes no other vectors.
_WITHIN_REACH = frozenset({"Transformer", "Pooling", "Normalize", "Dropout"})
_POOLS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}


def differences(folder: str, features: FeaturePlan, max_tokens: int | None) -> list[str]:
    """Where a job does otherwise, in words; nothing of a checkpoint that is not sentence-transformers'.

    Args:
        folder: the checkpoint's.
        features: the job's.
        max_tokens: at which the job cuts a text; None where it takes windows of it.
    """
    listed = [module for module in _read(Path(folder, "modules.json"), list) if isinstance(module, dict)]
    modules = {
        module["type"].rpartition(".")[2]: str(module.get("path", ""))
        for module in listed
        if isinstance(module.get("type"), str)
    }
    return [*_of_vectors(folder, modules, features), *_of_texts(folder, max_tokens)] if modules else []


def _of_vectors(folder: str, modules: Mapping[str, str], features: FeaturePlan) -> Iterator[str]:
    """Of features that are what it would make: one vector of the last layer."""
    vectors = [
        column for column in features.columns if column.pool in POOLED and column.layers == (features.num_layers,)
    ]
    if not vectors:
        return
    pools = _pools(Path(folder, modules["Pooling"], "config.json")) if "Pooling" in modules else []
    alike = [column for column in vectors if [column.pool] == pools]
    if pools and not alike:
        yield f"{' and '.join(pools)} pooling (no feature has it)"
    if "Normalize" in modules and not any(column.normalize for column in alike or vectors):
        yield "vectors of length 1 (no feature is normalized)"
    if further := sorted(modules.keys() - _WITHIN_REACH):
        yield f"{' and '.join(further)} applied to vectors (not here)"


def _pools(file: Path) -> list[str]:
    """The poolings, by Varve's names where it has them; their vectors stand side by side."""
    key, config = "pooling_mode", _read(file, dict)
    told = [name.removeprefix(f"{key}_") for name, wanted in config.items() if name.startswith(key) and wanted is True]
    pool = config.get(key)  # as later versions write it
    return [_POOLS.get(name, name) for name in ([pool] if isinstance(pool, str) else told)]


def _of_texts(folder: str, max_tokens: int | None) -> Iterator[str]:
    prompts = _read(Path(folder, "config_sentence_transformers.json"), dict).get("prompts")
    if isinstance(prompts, dict) and (names := [name for name, prompt in prompts.items() if prompt]):
        yield f"prompts before texts: {', '.join(names)} (none here)"
    most = _read(Path(folder, "sentence_bert_config.json"), dict).get("max_seq_length")
    if isinstance(most, int) and max_tokens not in (most, None):
        yield f"texts cut at {most} tokens (here {max_tokens})"


def _read(file: Path, kind: type[T]) -> T:
    """The content of a JSON file; nothing where it is none of this kind."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return kind()
    return content if isinstance(content, kind) else kind()
