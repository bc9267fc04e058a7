"""Differences between a job and what sentence-transformers computes from the same checkpoint.

Reads the small JSON files of sentence-transformers; runs none of its modules. Invariants: a file that is missing or
malformed yields no difference; no file outside of the checkpoint's folder is read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from varve.encoder.checkpoint.json_file import UnreadableFileError, read_json
from varve.encoder.feature_plan import POOLED, FeaturePlan

T = TypeVar("T", list, dict)

_MAX_BYTES = 2**20

# Modules that a feature can reproduce, or that do not change vectors.
_REPRODUCIBLE = frozenset({"Transformer", "Pooling", "Normalize", "Dropout"})
_POOLS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "last"}


def differences(folder: str, feature_plan: FeaturePlan, max_tokens: int | None) -> list[str]:
    """Describe what sentence-transformers does and the job does not; empty without a `modules.json`.

    Args:
        folder: of the checkpoint.
        feature_plan: of the job.
        max_tokens: at which the job truncates a text; None if it cuts texts into windows.
    """
    listed = [module for module in _read(folder, "modules.json", list) if isinstance(module, dict)]
    modules = {
        module["type"].rpartition(".")[2]: str(module.get("path", ""))
        for module in listed
        if isinstance(module.get("type"), str)
    }
    if not modules:
        return []
    found = [*_compare_vectors(folder, modules, feature_plan), *_compare_texts(folder, max_tokens)]
    return ["".join(filter(str.isprintable, text)) for text in found]  # names of the checkpoint reach the terminal


def _compare_vectors(folder: str, modules: Mapping[str, str], feature_plan: FeaturePlan) -> Iterator[str]:
    """Compare pooling and later modules with the features that are comparable: one vector of the last layer."""
    comparable = [
        column
        for column in feature_plan.columns
        if column.pool in POOLED and column.layers == (feature_plan.num_layers,)
    ]
    if not comparable:
        return
    pools = _read_pools(folder, modules["Pooling"]) if "Pooling" in modules else []
    same_pool = [column for column in comparable if [column.pool] == pools]
    if pools and not same_pool:
        yield f"{' and '.join(pools)} pooling (no feature has it)"
    if "Normalize" in modules and not any(column.normalize for column in same_pool or comparable):
        yield "vectors of length 1 (no feature is normalized)"
    if others := sorted(modules.keys() - _REPRODUCIBLE):
        yield f"{' and '.join(others)} applied to vectors (not by this job)"


def _read_pools(folder: str, module: str) -> list[str]:
    """The poolings whose vectors are concatenated, with Varve's names if it has them."""
    key, config = "pooling_mode", _read(folder, Path(module, "config.json"), dict)
    names = [name.removeprefix(f"{key}_") for name, used in config.items() if name.startswith(key) and used is True]
    pool = config.get(key)
    if isinstance(pool, str):  # the format of later versions
        names = [pool]
    return [_POOLS.get(name, name) for name in names]


def _compare_texts(folder: str, max_tokens: int | None) -> Iterator[str]:
    prompts = _read(folder, "config_sentence_transformers.json", dict).get("prompts")
    if isinstance(prompts, dict) and (names := [name for name, prompt in prompts.items() if prompt]):
        yield f"prompts before texts: {', '.join(names)} (this job adds none)"
    max_length = _read(folder, "sentence_bert_config.json", dict).get("max_seq_length")
    if isinstance(max_length, int) and max_tokens not in (max_length, None):
        yield f"texts cut at {max_length} tokens (here {max_tokens})"


def _read(folder: str, path: str | Path, content_type: type[T]) -> T:
    """The content of a JSON file of the folder; empty if it cannot be read or has another type."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return content_type()
    try:
        content = read_json(Path(folder, path), _MAX_BYTES)
    except UnreadableFileError:
        return content_type()
    return content if isinstance(content, content_type) else content_type()
