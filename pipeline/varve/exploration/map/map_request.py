"""What a map is made of: the feature, the method, the seed, and the run. Stored before anything else of the map.

Invariant: all files of a map belong to one request; another request of the same name is refused.
"""

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from varve.errors import JobError, RunError, one_line
from varve.output.json_text import parse_object
from varve.storage.object_store import Storage

MAPS = "maps"
METHODS = ("auto", "umap", "pca")
SAMPLE_ROWS, NEIGHBOURS = 20_000, 15
MAX_NEIGHBOURS = 200
LIBRARIES = ("varve", "numpy", "umap-learn", "numba", "faiss-cpu")
_MAX_BYTES = 2**20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MapRequest:
    """The request of a map.

    Attributes:
        feature: of one vector per row.
        method: umap or pca.
        neighbours: of each row, and in the graph of UMAP.
        seed: of the sample and the layout.
        sample_rows: rows that the layout is fitted on, at most.
        color: kept column that is copied to the map; None: none.
        texts: text columns that are copied.
        manifest_sha256: of the run.
        fingerprint: of the run.
    """

    feature: str
    method: str
    neighbours: int = NEIGHBOURS
    seed: int = 0
    sample_rows: int = SAMPLE_ROWS
    color: str | None = None
    texts: tuple[str, ...] = ()
    manifest_sha256: str | None
    fingerprint: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are copied to the map."""
        return tuple(dict.fromkeys([*([] if self.color is None else [self.color]), *self.texts]))

    def encode(self) -> bytes:
        """The content of request.json."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()


def map_folder(name: str) -> str:
    """Where the files of a map are, below the path of the output.

    Raises:
        JobError: the name is not one of a folder.
    """
    if not _NAME.fullmatch(name):
        msg = f"--name: {name!r:.200} is not allowed: expected letters, digits, `_`, `-` and `.`"
        raise JobError(msg)
    return f"{MAPS}/{name}"


def save_request(storage: Storage, name: str, request: MapRequest) -> None:
    """Store a request, unless it is there.

    Raises:
        JobError: a map of this name was made with other values, which are named.
        RunError: the store failed.
    """
    object_name = f"{map_folder(name)}/request.json"
    if storage.create(object_name, request.encode()):
        return
    stored, own = read_json(storage, object_name) or {}, json.loads(request.encode())
    changed = [f"{each.name} {stored.get(each.name)!r:.100}, now {own[each.name]!r:.100}" for each in fields(request)
               if stored.get(each.name) != own[each.name]]  # fmt: skip
    msg = f"{storage.uri}/{map_folder(name)} is another map: {'; '.join(changed)}. Choose another --name, or delete it"
    raise JobError(msg)


def read_json(storage: Storage, object_name: str) -> dict[str, Any] | None:
    """A small JSON object of a map; None if it does not exist.

    Raises:
        RunError: it cannot be read.
    """
    content = storage.read_at_most(object_name, _MAX_BYTES)
    try:
        return None if content is None else parse_object(content)
    except ValueError as e:
        msg = f"{storage.uri}/{object_name} cannot be read: {one_line(e)}"
        raise RunError(msg) from e
