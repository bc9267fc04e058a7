"""Paths of a run's objects as the destination's table writes them, and back.

A table at file:///data/lake expects file:///data/lake/... in a commit, while a `Storage` has /data/lake/....
"""

import posixpath

from varve.config.base import local_path
from varve.errors import RunError
from varve.storage.object_store import Storage


def run_path(folder: str, storage: Storage, name: str) -> str:
    """The path of an object in the spelling of the table's folder.

    Args:
        folder: of the table's runs, see `FeatureTable.folder`.
        storage: of the run, whose address is below that folder.
        name: of the object.
    """
    folder = folder.rstrip("/")
    root = Storage(folder).uri.rstrip("/")
    uri = storage.uri.rstrip("/")
    return posixpath.join(folder + uri[len(root) :] if f"{uri}/".startswith(f"{root}/") else uri, name)


def object_name(folder: str, storage: Storage, path: str) -> str:
    """The name of the object at a path: the inverse of `run_path`.

    Raises:
        RunError: the path is not below the run's folder.
    """
    for root in (run_path(folder, storage, ""), storage.uri.rstrip("/") + "/"):
        if path.startswith(root):
            return path.removeprefix(root)
    if local_path(path).startswith(storage.uri.rstrip("/") + "/"):
        return local_path(path).removeprefix(storage.uri.rstrip("/") + "/")
    msg = f"{path} is not below the folder of its run, {storage.uri}"
    raise RunError(msg)
