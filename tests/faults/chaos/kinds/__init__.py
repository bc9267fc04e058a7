"""The kinds of jobs of scenarios, by name."""

from tests.faults.chaos.kinds.folder import FolderKind
from tests.faults.chaos.kinds.index import INDEXES, IndexKind
from tests.faults.chaos.kinds.kind import Kind
from tests.faults.chaos.kinds.table import TABLES, TableKind

KINDS: dict[str, Kind] = {
    "folder": FolderKind(with_set=False),
    "set": FolderKind(with_set=True),
    **{name: TableKind(name) for name in TABLES},
    **{name: IndexKind(name) for name in INDEXES},
}
