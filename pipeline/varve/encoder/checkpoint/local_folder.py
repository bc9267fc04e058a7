"""Finds a checkpoint's local folder, and checks its files before anything slow starts.

Standard library only: `embed` calls it before it starts Ray, so that a model with a missing file is reported at once.
Knows nothing of the Hub.
"""

from pathlib import Path

from varve.encoder.checkpoint.config_file import read_config
from varve.encoder.checkpoint.consistency import check_consistency
from varve.encoder.checkpoint.weight_files import read_weights


def find_local_folder(name: str) -> Path | None:
    """The folder that `model.name` means; None if there is no such folder, so the name may be a Hub id."""
    try:
        return Path(name).resolve() if Path(name).is_dir() else None
    except OSError:  # a name that is too long, a folder that cannot be entered
        return None


def check_local_folder(name: str) -> None:
    """Check the configuration and the weights of a local folder; anything else is checked when it is fetched.

    Raises:
        JobError: a file is missing, incomplete or malformed, or the configuration does not fit the weights.
    """
    if folder := find_local_folder(name):
        config = read_config(folder, name)
        check_consistency(config, read_weights(folder, name, config).shapes, name)
