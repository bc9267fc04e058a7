import pyarrow as pa

from varve.ranges import Range
from varve.workers.part_message import PartMessage, pack_message, unpack_message


def test_message_is_unpacked_unchanged():
    table = pa.table({"text": ["a", None, "c"], "id": [[1], [], [2, 3]]})
    message = unpack_message(pack_message(PartMessage(Range(3, 1024, 1027), table, {"repeats": 2})))
    assert (message.rows, message.counts) == (Range(3, 1024, 1027), {"repeats": 2})
    assert message.table.equals(table)


def test_empty_part_keeps_its_schema():
    table = pa.schema([("text", pa.large_string())]).empty_table()
    message = unpack_message(pack_message(PartMessage(Range(0, 0, 0), table)))
    assert message.table.schema == table.schema
    assert len(message.table) == 0


def test_messages_in_one_table_stay_separate():
    tables = [pa.table({"id": [number]}) for number in range(3)]
    together = pa.concat_tables(
        pack_message(PartMessage(Range(0, at, at + 1), table)) for at, table in enumerate(tables)
    )
    assert [unpack_message(together.slice(at, 1)).table for at in range(3)] == tables
