"""Finds a checkpoint's local folder, and checks its files before anything slow starts.

Imports no library of models: `embed` calls it before it starts Ray, so that a model with a missing file is reported at
once. Knows nothing of the Hub.
"""

from pathlib import Path

from varve.config.model import Model
from varve.encoder.checkpoint.config_file import read_config
from varve.encoder.checkpoint.consistency import check_consistency
from varve.encoder.checkpoint.declared_vectors import read_declared_vectors
from varve.encoder.checkpoint.weight_files import read_weights
from varve.errors import JobError


def find_local_folder(name: str) -> Path | None:
    """The folder that `model.name` means; None if there is no such folder, so the name may be a Hub id."""
    try:
        return Path(name).resolve() if Path(name).is_dir() else None
    except OSError:  # a name that is too long, a folder that cannot be entered
        return None


def check_local_folder(model: Model, *, reads_declaration: bool = False) -> None:
    """Check the files of a local folder; anything else is checked when it is fetched.

    Args:
        model: section of the job.
        reads_declaration: the job computes what the checkpoint declares, if it declares something.

    Raises:
        JobError: a file is missing, incomplete or malformed, the configuration does not fit the weights, the role is
            not defined, or the declared vector cannot be computed.
    """
    root = find_local_folder(model.name)
    if root is None:
        return
    declared = read_declared_vectors(root, model.name, model.role, prompt=model.prompt)
    if reads_declaration and declared.problem:
        raise JobError(declared.problem)
    folder = root / declared.body
    config = read_config(folder, model.name)
    check_consistency(config, read_weights(folder, model.name, config).shapes, model.name)
