"""PartTable: records of any content come back unchanged, and take little memory; the manifest as JSON."""

import json
import pickle
from dataclasses import asdict, fields, replace
from hashlib import sha256

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varve.errors import RunError
from varve.output import manifest
from varve.output.manifest import Manifest
from varve.output.part_file import Part, write_part
from varve.output.part_table import PartTable
from varve.ranges import Range
from varve.storage.object_store import Storage

LARGE = 2**63 - 1
numbers = st.integers(0, LARGE // 100)
pairs = st.none() | st.tuples(numbers, numbers)
texts = st.text("abcdef_ \"'\\0", max_size=9)
records = st.builds(
    Part,
    shard=st.integers(0, 2**31 - 1),
    start=numbers,
    stop=numbers,
    fingerprint=texts,
    num_tokens=numbers,
    num_errors=numbers,
    num_null_texts=numbers,
    num_truncated=numbers,
    shortest=pairs,
    longest=pairs,
    data_bytes=numbers,
    data_sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
    file_bytes=numbers,
    footer_sha256=st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex),
    counts=st.dictionaries(texts, numbers, max_size=4),
    error_reasons=st.dictionaries(texts, numbers, max_size=4),
)
SCHEMA = pa.schema(
    {
        "num_tokens": pa.int32(), "truncated": pa.bool_(), "error": pa.string(), "shard": pa.int32(), "row": pa.int64()
    }
)  # fmt: skip


def part(number: int, **changes) -> Part:
    """A typical part: 1000 rows, ten parts per shard."""
    shard, start = number // 10, number % 10 * 1000
    content = {
        "shard": shard, "start": start, "stop": start + 1000, "fingerprint": "f" * 64, "num_tokens": 120_000 + number,
        "num_errors": number % 3, "num_truncated": number % 5, "shortest": (start + 3, 2), "longest": (start + 7, 512),
        "data_bytes": 3_000_000 + number, "data_sha256": sha256(str(number).encode()).hexdigest(),
        "file_bytes": 3_060_000 + number, "footer_sha256": sha256(f"footer {number}".encode()).hexdigest(),
        "counts": {"repeats": number % 50, "overflows": 0, "splits": 0},
    }  # fmt: skip
    return Part(**{**content, **changes})


def record(parts: PartTable) -> Manifest:
    nothing: dict = {name: {} for name in ("counts", "storage", "seconds", "stages", "encoder", "canary", "versions")}
    counted = {name: getattr(parts, name) for name in ("num_rows", "num_tokens", "num_errors", "num_truncated")}
    named = {"path": "memory://parts", "fingerprint": "f" * 64, "started_at": "then", "finished_at": "now"}
    settled: dict = {"file_bytes": parts.file_bytes, "job": {"a": 1}, "resolved": {"b": [2]}}
    return Manifest(**named, **nothing, **counted, **settled, parts=parts)


def test_every_field_of_a_part_has_a_column():
    assert PartTable.of([]).columns.column_names == [field.name for field in fields(Part)]


@settings(deadline=None)
@given(st.lists(records, max_size=20))
def test_parts_of_any_content_come_back_unchanged(given_parts):
    parts = PartTable.of(given_parts)
    assert list(parts) == given_parts
    assert [list(one.counts) for one in parts] == [list(one.counts) for one in given_parts]
    assert [parts[at] for at in range(len(parts))] == given_parts
    assert parts == PartTable.of(parts) == pickle.loads(pickle.dumps(parts))


@settings(deadline=None)
@given(st.lists(records, max_size=20))
def test_totals_of_parts_are_sums_over_them(given_parts):
    parts = PartTable.of(given_parts)
    for name in ("num_tokens", "num_errors", "num_null_texts", "num_truncated", "file_bytes"):
        assert getattr(parts, name) == sum(getattr(one, name) for one in given_parts)
    assert parts.num_rows == sum(one.range.num_rows for one in given_parts)
    names = {name for one in given_parts for name in one.counts}
    assert parts.counts == {name: sum(one.counts.get(name, 0) for one in given_parts) for name in names}


@settings(deadline=None)
@given(st.lists(records, max_size=20))
def test_in_order_sorts_by_range(given_parts):
    ranges = [one.range for one in PartTable.of(given_parts).in_order()]
    assert ranges == sorted(one.range for one in given_parts)


@pytest.mark.parametrize("shards", [[], [3], [7, 0, 999], [999, 1000]])
def test_parts_of_shards_are_pickled_without_the_others(shards):
    parts = PartTable.of(part(number) for number in range(10_000)).in_order()
    found = parts.of_shards(shards)
    assert list(found) == [one for one in parts if one.shard in shards]
    assert len(pickle.dumps(found)) < 20_000 < len(pickle.dumps(parts)) / 50


@pytest.mark.parametrize("cut", [slice(1, 3), slice(None), slice(-2, None), slice(None, None, -3), slice(5, 2)])
def test_slices_work_as_for_a_list(cut):
    given_parts = [part(number, fingerprint=str(number % 3)) for number in range(10_000)]
    assert list(PartTable.of(given_parts)[cut]) == given_parts[cut]


def test_negative_index_counts_from_the_end_and_larger_ones_raise():
    parts = PartTable.of(map(part, range(10_000)))
    assert (parts[0], parts[9_999], parts[-1]) == (part(0), part(9_999), part(9_999))
    for beyond in (10_000, -10_001):
        with pytest.raises(IndexError):
            parts[beyond]


def test_parts_with_different_content_are_not_equal():
    parts = PartTable.of([part(0), part(1, fingerprint="other")])
    assert parts != PartTable.of([part(0)])
    assert parts != PartTable.of([part(1, fingerprint="other"), part(0)])
    assert parts == PartTable.of([part(1, fingerprint="other"), part(0)])[::-1]
    assert parts != list(parts)


def test_record_takes_at_most_200_bytes():
    parts = PartTable.of(map(part, reversed(range(10_000))))
    for held in (parts, parts.in_order()):
        assert held.columns.nbytes <= 200 * len(held)


@pytest.mark.parametrize(
    "changes",
    [{"data_sha256": "not a hash"}, {"data_sha256": "00"}, {"footer_sha256": 1}, {"stop": "ten"}, {"stop": 2**64}],
)
def test_invalid_record_is_rejected(changes):
    with pytest.raises((ValueError, TypeError, OverflowError)):
        PartTable.of([part(0), part(1, **changes)])


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_manifest_is_the_json_of_its_fields_and_parts(count):
    made = record(PartTable.of(map(part, range(count))))
    parts = [{name: value for name, value in asdict(one).items() if name != "fingerprint"} for one in made.parts]
    content = {field.name: getattr(made, field.name) for field in fields(Manifest) if field.name != "sha256"}
    assert made.encode() == json.dumps({**content, "parts": parts}).encode()
    decoded = Manifest.decode(made.encode())
    assert (decoded, decoded.sha256) == (made, sha256(made.encode()).hexdigest())
    shown = {name: content[name] for name in content if name not in {"parts", "job", "resolved"}}
    assert decoded.summary() == {**shown, "num_parts": count, "manifest_sha256": decoded.sha256}


def test_manifest_of_an_older_version_without_footer_hashes_is_read(tmp_path):
    content = json.loads(record(PartTable.of([part(0)])).encode())
    del content["parts"][0]["footer_sha256"]
    storage = Storage(str(tmp_path))
    storage.create(manifest.MANIFEST_NAME, json.dumps(content).encode())
    older = manifest.read_manifest(storage)
    assert older is not None
    assert list(older.parts) == [part(0, footer_sha256=None)]


@pytest.mark.parametrize("changes", [{"data_sha256": "not a hash"}, {"stop": "ten"}, {"stop": 2**64}, {"a": 1}])
def test_manifest_with_an_invalid_part_is_rejected(tmp_path, changes):
    content = json.loads(record(PartTable.of([part(0)])).encode())
    content["parts"][0] |= changes
    storage = Storage(str(tmp_path))
    storage.create(manifest.MANIFEST_NAME, json.dumps(content).encode())
    with pytest.raises(RunError, match=manifest.MANIFEST_NAME):
        manifest.read_manifest(storage)


def test_known_records_are_used_and_the_other_footers_are_read(tmp_path):
    storage = Storage(str(tmp_path))
    ranges = [Range(shard, start, start) for shard in range(2) for start in range(0, 30, 10)]
    written = [write_part(storage, rows, SCHEMA.empty_table(), "print") for rows in ranges]
    known = [replace(written[at], num_tokens=at) for at in (4, 1)]  # differs from the footer
    not_committed = part(70)
    parts = manifest.read_parts(storage, manifest.committed(storage), PartTable.of([*known, not_committed, known[0]]))
    assert list(parts) == [written[0], known[1], *written[2:4], known[0], written[5]]
    assert list(manifest.read_parts(storage, manifest.committed(storage))) == written
    assert list(manifest.read_parts(storage, {}, known)) == []
