"""Downloads a model from the Hugging Face Hub, or finds its local folder.

The only file of the encoder that connects to the Hub; it does not read the model's files. Invariant: a Hub id is pinned
to the commit of the returned files. They come from the Hub, or from its cache if the Hub cannot be reached or
HF_HUB_OFFLINE is set.
"""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (from httpx or httpx2, depending on the version)
    LocalEntryNotFoundError,
)

from varve.encoder.checkpoint.local_folder import find_local_folder
from varve.errors import JobError, first_line

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]


def fetch(name: str, revision: str | None) -> tuple[str, str | None]:
    """The local folder of a checkpoint and its commit (None for a local folder).

    Raises:
        JobError: neither a local folder nor the Hub has the model, or the Hub cannot be reached.
    """
    if local := find_local_folder(name):
        return str(local), None
    if name.startswith((".", "/", "~")):
        msg = f"model.name: {name}: no such folder"
        raise JobError(msg)
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=_FILES)
    except Exception as e:  # the client takes the form of an answer for granted: of another one it raises anything
        raise JobError(_describe_error(name, revision, e)) from e
    return folder, Path(folder).name


def find_cached(name: str, revision: str | None) -> str | None:
    """The folder of a checkpoint that is on this machine already; None if it would have to be downloaded."""
    if local := find_local_folder(name):
        return str(local)
    try:
        return snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=True)
    except (HFValidationError, OSError):
        return None


def _describe_error(name: str, revision: str | None, error: Exception) -> str:
    start = f"model.name: {name} is not a local directory"
    match error:
        case HFValidationError():
            return f"{start} and not a valid Hub id"
        case LocalEntryNotFoundError():
            return (
                f"{start}, and the Hugging Face Hub could not be reached: {first_line(error.__cause__ or error)}. "
                f"The cache {constants.HF_HUB_CACHE} does not hold all files of revision {revision or 'main'}. "
                "Download the model on a machine with network access, or use a local directory"
            )
        case OSError():
            return f"{start} and could not be loaded from the Hugging Face Hub: {first_line(error)}"
        case HTTPError():
            return (
                f"{start}, and the Hugging Face Hub could not be reached: {first_line(error)}. Check HF_ENDPOINT and "
                "the proxy, set HF_HUB_OFFLINE=1 if the model is in the Hub's cache, or use a local directory"
            )
        case _:
            return (
                f"{start}, and {constants.ENDPOINT} does not answer as the Hugging Face Hub does: "
                f"{type(error).__name__} {first_line(error)}. Check HF_ENDPOINT and the proxy, set HF_HUB_OFFLINE=1 if "
                "the model is in the Hub's cache, or use a local directory"
            )
