"""A model's name → its folder here, and the commit that it is pinned to.

All of the encoder that asks the Hub. Knows nothing of what the files say. Invariant: a hub id is pinned to the commit
whose files are in the folder, whether they come from the Hub or from its cache: that is read where the Hub can't be
reached or HF_HUB_OFFLINE is set.
"""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of httpx, or now httpx2)
    LocalEntryNotFoundError,
)

from varve.errors import JobError, first_line

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]


def fetch(name: str, revision: str | None) -> tuple[str, str | None]:
    """The local folder of a checkpoint and the commit it is pinned to (None for a folder of the user's).

    Raises:
        JobError: there is no such folder and no such model on the hub, or the hub can't be reached.
    """
    if Path(name).is_dir():
        return str(Path(name).resolve()), None
    if name.startswith((".", "/", "~")):
        msg = f"model.name: {name}: no such folder"
        raise JobError(msg)
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=_FILES)
    except (HFValidationError, HTTPError, OSError) as e:
        raise JobError(_reason(name, revision, e)) from e
    return folder, Path(folder).name


def _reason(name: str, revision: str | None, error: Exception) -> str:
    start = f"model.name: {name} is no folder here, and the hub"
    match error:
        case HFValidationError():
            return f"model.name: {name} is neither a folder here nor a hub id"
        case LocalEntryNotFoundError():
            return (
                f"{start} could not be reached: {first_line(error.__cause__ or error)}. Its cache "
                f"{constants.HF_HUB_CACHE} does not hold all of revision {revision or 'main'}. Fetch the model where "
                "there is a network, or name a folder"
            )
        case OSError():
            return f"{start} did not give it: {first_line(error)}"
        case _:
            return (
                f"{start} could not be reached: {first_line(error)}. Check HF_ENDPOINT and the proxy, set "
                "HF_HUB_OFFLINE=1 if the model is in the hub's cache, or name a folder"
            )
