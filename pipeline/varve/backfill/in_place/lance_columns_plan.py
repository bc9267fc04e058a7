"""Decides what each fragment of the latest version of a Lance dataset gets from a run.

    fragment of the pinned version whose texts are unchanged    the encoded rows of its shard
    fragment that is newer, or whose texts were rewritten       the encoded rows with the same texts
    all other fragments                                         nothing

Invariants: the plan is a function of two versions and the parts; deletions and columns of other writers do not matter,
since files have one row for each physical row. A row whose text no part has stays without features until the next run.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from varve.backfill.in_place.lance_columns_task import FragmentTask
from varve.backfill.in_place.rows import OwnColumns
from varve.errors import RunError
from varve.lake.lance.fragments import deletions, field_ids, files_of, fragment_id, overlays
from varve.output.part_table import PartTable
from varve.source.row_selection import RowSelection

if TYPE_CHECKING:
    from lance import LanceDataset
    from lance.fragment import FragmentMetadata

RECORDS = "_varve/columns"


@dataclass(frozen=True)
class ColumnPlan:
    """What a run writes.

    Attributes:
        uri: of the dataset.
        pinned: the version that was encoded.
        own: columns.
        schema: of the own columns.
        text_columns: names in the pinned version.
        selection: of the run.
        parts: of the run.
        prefix: of the names of files, another one for each run.
    """

    uri: str
    pinned: "LanceDataset"
    own: OwnColumns
    schema: pa.Schema
    text_columns: tuple[str, ...]
    selection: RowSelection
    parts: PartTable
    prefix: str

    def tasks(self, head: "LanceDataset") -> list[FragmentTask]:
        """The files that the commit at a version needs; none if the run's files are part of it.

        Raises:
            RunError: a text column was dropped.
        """
        current = [each.metadata for each in head.get_fragments()]
        own = field_ids(head, self.own.names)
        if any(name.startswith(self.prefix) for each in current for name in files_of(each, own)):
            return []
        same = {each.id for each in current if self._is_same(each, own)}
        encoded = [self._encoded_rows(each) for each in sorted(same & self._shards.keys())]
        moved = self._moved_shards(current, same)
        later = [each for each in current if each.id not in same] if moved else []
        return encoded + [self._same_texts(head, each, moved) for each in later]

    @cached_property
    def _fragments(self) -> Mapping[int, "FragmentMetadata"]:
        return {each.fragment_id: each.metadata for each in self.pinned.get_fragments()}

    @cached_property
    def _shards(self) -> Mapping[int, int]:
        """Id of a fragment → its shard."""
        return {fragment_id(file.path): shard for shard, file in enumerate(self.selection.files)}

    @cached_property
    def _texts(self) -> frozenset[int]:
        return field_ids(self.pinned, self.text_columns)

    @cached_property
    def _own_before(self) -> frozenset[int]:
        return field_ids(self.pinned, self.own.names)

    def _is_same(self, now: "FragmentMetadata", own: frozenset[int]) -> bool:
        """Whether a fragment has the physical rows, texts and own columns of the pinned version."""
        before = self._fragments.get(now.id)
        return (
            before is not None
            and before.physical_rows == now.physical_rows
            and files_of(before, self._texts) == files_of(now, self._texts)
            and files_of(before, self._own_before) == files_of(now, own)
            and overlays(before) == overlays(now)
        )

    def _moved_shards(self, current: list["FragmentMetadata"], same: set[int]) -> frozenset[int]:
        """Shards of whose rows some may be in other fragments now."""
        deleted = {each.id: deletions(each) for each in current if each.id in same}
        return frozenset(
            shard
            for fragment, shard in self._shards.items()
            if fragment not in same or deleted[fragment] != deletions(self._fragments[fragment])
        )

    def _encoded_rows(self, fragment: int) -> FragmentTask:
        shard = self._shards[fragment]
        return self._task(fragment, "pinned", self.pinned.version, self.text_columns, shard, frozenset({shard}))

    def _same_texts(self, head: "LanceDataset", now: "FragmentMetadata", moved: frozenset[int]) -> FragmentTask:
        content = [sorted(str(file.path) for file in now.files), deletions(now), overlays(now)]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        return self._task(now.id, key, head.version, self._names_in(head), None, moved)

    def _names_in(self, head: "LanceDataset") -> tuple[str, ...]:
        """The names of the text columns in a version, which may have been renamed."""
        names = {field.id(): field.name() for field in head.lance_schema.fields()}
        ids = [field.id() for name in self.text_columns if (field := self.pinned.lance_schema.field(name))]
        if missing := [name for name, each in zip(self.text_columns, ids, strict=True) if each not in names]:
            msg = f"{self.uri}: the text column {missing[0]!r} was dropped after version {self.pinned.version}"
            raise RunError(msg)
        return tuple(names[each] for each in ids)

    def _task(
        self, fragment: int, key: str, version: int, texts: tuple[str, ...], shard: int | None, shards: frozenset[int]
    ) -> FragmentTask:
        return FragmentTask(
            uri=self.uri,
            version=version,
            fragment=fragment,
            record=f"{RECORDS}/fragment-{fragment:08d}-{key}.json",
            prefix=self.prefix,
            own=self.own,
            schema=self.schema,
            text_columns=texts,
            storage=self.selection.storage,
            selected=None if shard is None else self.selection.of_shard(shard),
            parts=self._in_order.of_shards(shards),
        )

    @cached_property
    def _in_order(self) -> PartTable:
        return self.parts.in_order()
