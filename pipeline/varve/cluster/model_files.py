"""A checkpoint's files on every node: Ray transfers them, once per node for all its replicas.

Only the driver reads the Hub, and a local model folder need not be on a shared disk. Knows nothing of models.
Invariants: the folder on a node appears complete or not at all, and its name is the hash of its content; it is in a
folder that only this user can change, though its name is known to all users of the machine.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from filelock import FileLock

from varve.errors import RunError

# The files of a checkpoint: weights, configuration, tokenizer, and code, which runs only if the job allows it.
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py")


class ModelFiles:
    """The files of a model folder in Ray's object store."""

    def __init__(self, root: str, folders: Collection[str] = ("",), files: Collection[str] = ()) -> None:
        """Put files below `root` into the object store.

        Args:
            root: of the checkpoint.
            folders: relative to the root, whose files travel, without those of folders in them.
            files: further files, relative to the root.
        """
        self._folder, self._driver_node = root, ray.get_runtime_context().get_node_id()
        found = {path for folder in folders for pattern in _PATTERNS for path in Path(root, folder).glob(pattern)}
        digest = hashlib.sha256()
        self._objects: dict[str, Any] = {}
        for path in sorted(found | {Path(root, file) for file in files}):
            content, name = np.fromfile(path, dtype=np.uint8), str(path.relative_to(root))
            digest.update(f"{name} {len(content)} ".encode())
            digest.update(content.data)
            self._objects[name] = ray.put(content)
        self._sha256 = digest.hexdigest()

    def local_folder(self) -> str:
        """The folder on this node: the original on the driver's node, elsewhere a copy that the first caller writes.

        Raises:
            RunError: the temporary disk of the node has no room, or another user has taken the name of the folder.
        """
        if ray.get_runtime_context().get_node_id() == self._driver_node:
            return self._folder
        root = Path(tempfile.gettempdir()) / f"varve-models-{os.getuid()}"
        folder = root / self._sha256
        try:
            make_private(root)
            with FileLock(root / f"{self._sha256}.lock"):
                if not folder.exists():
                    self._write(root, folder)
        except OSError as e:
            msg = f"could not write the model files to {folder}: {e.strerror or e}. Set TMPDIR to a larger disk"
            raise RunError(msg) from e
        return str(folder)

    def _write(self, root: Path, folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=root) as staging:
            staged = Path(staging, "model")
            staged.mkdir()
            for name, stored in self._objects.items():
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                (staged / name).write_bytes(memoryview(ray.get(stored)))  # pyright: ignore[reportArgumentType]
            staged.rename(folder)


def make_private(folder: Path) -> None:
    """Make a folder that only this user can read and change, or check that it is one.

    Raises:
        RunError: another user made it, or it is a link: what is in it may be another checkpoint than its name says.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=stat.S_IRWXU)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        msg = f"{folder} is not a folder of this user. Remove it, or set TMPDIR to a folder of your own"
        raise RunError(msg)
    if stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
        folder.chmod(stat.S_IRWXU)
