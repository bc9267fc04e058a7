"""A checkpoint's files on every node: Ray carries them there, once for all the replicas of a node.

A hub id is fetched by the driver alone, and a folder of the user's need not lie on a shared disk. Knows nothing of
models. Invariant: a node's folder appears whole or not at all, and its name is the hash of the content.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
from filelock import FileLock

from varve.errors import RunError

# What a checkpoint needs: safetensors, configuration, tokenizer, and code where the job allows it.
_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py")


class ModelFiles:
    """The files of a folder as objects of the cluster, to be laid down where they are needed."""

    def __init__(self, folder: str) -> None:
        """Put the files in Ray's object store."""
        self._folder, self._home = folder, ray.get_runtime_context().get_node_id()
        files = sorted({path for pattern in _PATTERNS for path in Path(folder).glob(pattern)})
        digest = hashlib.sha256()
        self._objects: dict[str, Any] = {}
        for path in files:
            content = np.fromfile(path, dtype=np.uint8)
            digest.update(f"{path.name} {len(content)} ".encode())
            digest.update(content.data)
            self._objects[path.name] = ray.put(content)
        self._sha256 = digest.hexdigest()

    def here(self) -> str:
        """The folder on this node: the driver's own there, elsewhere a copy that the first who asks lays down.

        Raises:
            RunError: the node's temporary disk can't take it.
        """
        if ray.get_runtime_context().get_node_id() == self._home:
            return self._folder
        root = Path(tempfile.gettempdir()) / f"varve-models-{os.getuid()}"
        folder = root / self._sha256
        try:
            root.mkdir(mode=0o700, exist_ok=True)
            with FileLock(root / f"{self._sha256}.lock"):
                if not folder.exists():
                    self._lay_down(root, folder)
        except OSError as e:
            msg = f"the model's files could not be laid down in {folder}: {e.strerror or e}. Point TMPDIR to more room"
            raise RunError(msg) from e
        return str(folder)

    def _lay_down(self, root: Path, folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=root) as staged:
            whole = Path(staged, "model")
            whole.mkdir()
            for name, held in self._objects.items():
                (whole / name).write_bytes(memoryview(ray.get(held)))  # pyright: ignore[reportArgumentType]
            whole.rename(folder)
