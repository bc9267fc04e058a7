"""A checkpoint's config.json, before transformers reads it.

Standard library only. Refuses numbers with which transformers would run for hours or exhaust the memory before it
compares anything with the weights. Knows no architecture.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from varve.encoder.checkpoint.json_file import UnreadableFileError, read_json
from varve.errors import JobError

_MAX_BYTES = 16 * 2**20
# transformers makes a list or modules of so many items. The largest models have 126 layers and some hundred experts.
_LIMITS = (
    (re.compile(r"layers?$|blocks?$|depths?$|stages$"), 1000),
    (re.compile(r"heads?$|experts?$|groups?$"), 65_536),
    (re.compile(r"num_labels$"), 10_000_000),
)
_ADAPTER = "adapter_config.json"


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """The content of config.json, a mapping without absurd numbers.

    Args:
        folder: of the checkpoint.
        name: `model.name`, for messages.

    Raises:
        JobError: it is missing or malformed, or a number in it is out of bounds.
    """
    try:
        config = read_json(folder / "config.json", _MAX_BYTES)
    except UnreadableFileError as e:
        raise _config_error(name, folder, str(e)) from e
    if not isinstance(config, dict):
        raise _config_error(name, folder, f"holds a {type(config).__name__}, not a mapping")
    if (folder / _ADAPTER).exists():
        msg = (
            f"model.name: {name} has an {_ADAPTER}, and adapters are not loaded: merge the adapter into its base model "
            "(merge_and_unload of peft) and save the result to a new folder"
        )
        raise JobError(msg)
    for key, value in _numbers(config):
        _check_number(name, key, value)
    return config


def _config_error(name: str, folder: Path, problem: str) -> JobError:
    return JobError(
        f"model.name: {name} has no configuration that can be read: {folder / 'config.json'} {problem}. Download the "
        "model again, or save it with save_pretrained"
    )


def _numbers(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int | float]]:
    """(key, number) of all numbers, also of lists and nested sections."""
    for key, value in config.items():
        values = value if isinstance(value, list) else [value]
        for item in values:
            if isinstance(item, dict):
                yield from _numbers(item, f"{prefix}{key}.")
            elif isinstance(item, int | float) and not isinstance(item, bool):
                yield f"{prefix}{key}", item


def _check_number(name: str, key: str, value: float) -> None:
    for pattern, most in _LIMITS:
        if pattern.search(key) and not value <= most:  # also true for NaN
            shown = f"{Decimal(value):.0e}" if isinstance(value, int) and value > sys.float_info.max else f"{value:g}"
            msg = f"model.name: {name}: {key} in config.json is {shown}: expected {most:,} or less"
            raise JobError(msg)
