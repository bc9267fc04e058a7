"""Columns of the user's functions: failing rows do not affect others, results of a wrong type are refused."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from varve.config.feature import Computed, Feature
from varve.encoder.encoder import Encoder
from varve.errors import JobError, RunError
from varve.output.schema import output_schema
from varve.planning.udf_dry_run import dry_run_functions
from varve.preprocessing.computed_columns import ComputedColumn, compute_columns
from varve.preprocessing.text_blocks import tokenize_blocks
from varve.workers.featurize import featurize

FUNCTIONS = """
import os, sys
import numpy as np, pyarrow as pa, pyarrow.compute as pc

def texts(rows): return rows["text"].to_pylist()
def length(rows): return pc.utf8_length(rows["text"])
def number(rows): return [float(text) for text in texts(rows)]
def null_where_empty(rows): return [text or None for text in texts(rows)]
def plain(rows): return np.array([len(text) for text in texts(rows)])
def chunked(rows): return pa.chunked_array([length(rows).slice(0, 1), length(rows).slice(1)])
def vector(rows): return np.arange(2.0 * len(rows)).reshape(-1, 2)
def lists(rows): return [[1, 2]] * len(rows)
def encoded(rows): return rows["text"].dictionary_encode()
def is_long(rows): return pc.greater(length(rows), 3)
def short(rows): return length(rows).slice(1)
def scalar(rows): return 1.0
def table(rows): return pa.table({"a": length(rows)})
def wide(rows): return np.ones((len(rows), 3))
def narrow(rows): return pa.array([[1.0]] * len(rows), pa.list_(pa.float32(), 1))
def with_null(rows): return pa.array([[1.0, None if text == "bad" else 2.0] for text in texts(rows)])
def huge(rows): return [2**40 if text == "huge" else 1 for text in texts(rows)]
def leave(rows):
    if "leave" in texts(rows): sys.exit("gone")
    return length(rows)
def strange(rows):
    if "strange" in texts(rows): raise ValueError("\\ud800 and\\n  more " + "x" * 1000)
    return length(rows)
def die(rows):
    if "die" in texts(rows): os._exit(9)
    return length(rows)
def loud(rows):
    print("a line on stdout")
    return length(rows)
buffer = np.zeros(100)
def reused(rows):
    buffer[: len(rows)] = [float(text) for text in texts(rows)]
    return buffer[: len(rows)]
"""


@pytest.fixture(scope="module")
def column(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    (folder / "my_functions.py").write_text(FUNCTIONS)

    def make(function: str, kind: str) -> ComputedColumn:
        return ComputedColumn.of("c", Computed(python=f"my_functions:{function}", type=kind), str(folder))

    return make


def rows_of(*texts) -> pa.Table:
    return pa.table({"text": pa.array(texts, pa.large_string()), "id": range(len(texts))})


def compute(column, *texts):
    """(values, reasons) of rows without earlier reasons."""
    reasons: list[str | None] = [None] * len(texts)
    values = compute_columns([column], rows_of(*texts), reasons)["c"]
    assert values.type == column.type
    assert len(values) == len(texts)
    return values.to_pylist(), reasons


@pytest.mark.parametrize(
    ("function", "kind", "values"),
    [
        ("length", "int32", [1, 4]),
        ("length", "int64", [1, 4]),
        ("length", "float32", [1.0, 4.0]),
        ("plain", "float64", [1.0, 4.0]),
        ("plain", "int32", [1, 4]),
        ("chunked", "int64", [1, 4]),
        ("vector", "float32[2]", [[0.0, 1.0], [2.0, 3.0]]),
        ("lists", "float64[2]", [[1.0, 2.0], [1.0, 2.0]]),
        ("lists", "int32[2]", [[1, 2], [1, 2]]),
        ("encoded", "string", ["a", "four"]),
        ("is_long", "bool", [False, True]),
    ],
)
def test_results_of_the_declared_kind_are_columns_of_that_type(function, kind, values, column):
    assert compute(column(function, kind), "a", "four") == (values, [None, None])


@pytest.mark.parametrize(
    ("function", "kind", "got"),
    [
        ("short", "int32", "1 values for 2 rows"),
        ("scalar", "float32", "a float"),
        ("table", "int32", "a Table"),
        ("encoded", "float32", "dictionary"),
        ("number", "int32", "values of type double"),
        ("is_long", "int32", "values of type bool"),
        ("length", "string", "values of type int64"),
        ("wide", "float32[2]", r"a numpy array of shape \(2, 3\) for 2 rows"),
        ("vector", "float32", r"shape \(2, 2\)"),
        ("plain", "float32[2]", r"shape \(2,\)"),
        ("narrow", "float32[2]", r"fixed_size_list<item: float>\[1\]"),
    ],
)
def test_result_that_does_not_fit_names_feature_expected_and_got(function, kind, got, column):
    with pytest.raises(
        RunError, match=rf"features\.c: my_functions:{function} returned .*{got}.*, expected .*"
    ) as error:
        compute(column(function, kind), "1", "1.5")
    assert f"one {kind} for each row" in str(error.value)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.sampled_from(["1", "2.5", "x", "nan", "", "inf"]), min_size=1, max_size=20))
def test_exactly_the_rows_that_fail_have_a_reason_and_no_value(texts, column):
    values, reasons = compute(column("number", "float32"), *texts)
    expected = {
        "x": "ValueError: could not convert",
        "": "ValueError: could not",
        "nan": "not finite",
        "inf": "not finite",
    }
    for text, value, reason in zip(texts, values, reasons, strict=True):
        if text in expected:
            assert expected[text] in reason
            assert reason.startswith("c: ")
        else:
            assert (value, reason) == (float(text), None)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.sampled_from(["1", "2", "x", None, "nan"]), min_size=1, max_size=12),
    block_rows=st.integers(1, 12),
)
def test_values_are_the_same_in_one_block_and_in_many(texts, block_rows, column):
    columns, table = [column("number", "float64")], rows_of(*texts)
    bad = [None if text else "null text in text" for text in texts]

    def run(rows):
        reasons: list[str | None] = list(bad[rows])
        return compute_columns(columns, table.slice(rows.start, rows.stop - rows.start), reasons)["c"], reasons

    whole, reasons = run(slice(0, len(texts)))
    cuts = [slice(at, min(at + block_rows, len(texts))) for at in range(0, len(texts), block_rows)]
    pieces = [run(cut) for cut in cuts]
    assert pa.concat_arrays([values for values, _ in pieces]).equals(whole)
    assert [reason for _, piece_reasons in pieces for reason in piece_reasons] == reasons


def test_functions_do_not_receive_rows_that_have_a_reason(column):
    reasons = ["null text in text", None, None, "text is not UTF-8"]
    values = compute_columns(
        [column("number", "float32"), column("length", "int32")], rows_of(None, "1", "x", "2"), reasons
    )
    assert values["c"].to_pylist() == [None, 1, None, None]
    assert reasons[2].startswith("c: ValueError")


def test_null_is_a_value_and_a_null_in_a_vector_is_an_error(column):
    assert compute(column("null_where_empty", "string"), "", "a") == ([None, "a"], [None, None])
    assert compute(column("with_null", "float32[2]"), "a", "bad")[1] == [None, "c: a value of its vector is null"]


def test_integer_that_does_not_fit_fails_its_row_only(column):
    values, reasons = compute(column("huge", "int32"), "a", "huge", "b")
    assert values == [1, None, 1]
    assert "ArrowInvalid: Integer value 1099511627776 not in range" in reasons[1]


@pytest.mark.parametrize("name", ["leave", "strange"])
def test_exit_and_messages_that_are_not_utf8_fail_their_row_only(name, column):
    values, reasons = compute(column(name, "int32"), "a", name, "b")
    assert values == [1, None, 1]
    assert len(pa.array(reasons, pa.string())[1].as_py()) < 400
    assert "\n" not in reasons[1]


def test_reused_buffer_does_not_change_earlier_values(column):
    first = column("reused", "float64").compute(rows_of("1", "2").to_batches()[0])[0]
    column("reused", "float64").compute(rows_of("3", "4").to_batches()[0])
    assert first.to_pylist() == [1, 2]


def test_dry_run_refuses_functions_that_fail_on_every_row_and_accepts_failures_of_single_rows(column):
    table = rows_of(None, "1", "x", "die")
    assert dry_run_functions([column("encoded", "string")], table, ["text"])["c"] > 0
    assert dry_run_functions([column("loud", "int32"), column("number", "float64")], table, ["text"])["c"] == 8
    assert dry_run_functions([column("die", "int32")], table, ["text"])["c"] == 4
    assert dry_run_functions([column("number", "int32")], table.slice(0, 0), ["text"])["c"] == 4
    with pytest.raises(JobError, match=r"features\.c: my_functions:number fails on each of the first 2 rows\. c: Val"):
        dry_run_functions([column("number", "float32")], table.slice(2), ["text"])
    with pytest.raises(JobError, match=r"features\.c: my_functions:scalar returned a float"):
        dry_run_functions([column("scalar", "float32")], table, ["text"])
    with pytest.raises(JobError, match="has no function 'nothing'"):
        dry_run_functions([column("nothing", "float32")], table, ["text"])


def test_computed_columns_are_null_in_error_rows(tiny, column):
    encoder = Encoder(tiny("bert"), {"e": Feature(pool="mean")}, device="cpu")
    columns, table = [column("vector", "float32[2]"), column("leave", "int32")], rows_of("one", None, "leave", "two")
    columns = [columns[0], ComputedColumn("d", "int32", None, columns[1].code)]
    schema = output_schema(encoder.feature_plan, pa.schema([table.schema.field("id")]), pairs=False, computed=columns)

    blocks = tokenize_blocks(encoder.tokenizer, table, ["text"], 3, columns)
    result, _, _ = featurize(encoder, table, blocks, schema=schema, shard=0, start=0, pairs=False)
    assert result["error"].to_pylist() == [
        None,
        "null text in text",
        "d: SystemExit: gone (my_functions.py, line 23)",
        None,
    ]
    assert result["d"].to_pylist() == [3, None, None, 3]
    assert result["c"].to_pylist() == [[0, 1], None, None, [0, 1]]
    assert result["e"].null_count == 2


def test_vectors_are_stored_like_features_and_single_values_with_statistics(column):
    import io

    import pyarrow.parquet as pq

    from varve.encoder.feature_columns import plan_features
    from varve.encoder.feature_plan import ModelShape
    from varve.output.part_file import encode_part
    from varve.ranges import Range

    plan = plan_features({"e": Feature(pool="mean")}, ModelShape(2, 4, 2, 0, False), dtype="float32")
    columns = [column("vector", "float64[2]"), ComputedColumn("d", "float32", None, column("length", "int32").code)]
    schema = output_schema(plan, pa.schema([]), pairs=False, computed=columns)
    values = {name: pa.nulls(3, schema.field(name).type) for name in schema.names}
    values |= {"c": pa.array(np.ones((3, 2)).tolist(), schema.field("c").type), "d": pa.array([1, 2, 3], pa.float32())}
    values |= {"shard": pa.array([0] * 3, pa.int32()), "row": pa.array(range(3))}
    content = encode_part(Range(0, 0, 3), pa.table(list(values.values()), schema=schema), "print")[1]
    footer = pq.read_metadata(io.BytesIO(content)).row_group(0)
    stored = {footer.column(at).path_in_schema: footer.column(at) for at in range(footer.num_columns)}
    assert "BYTE_STREAM_SPLIT" in stored["c.list.element"].encodings
    assert stored["c.list.element"].statistics is None
    assert (stored["d"].statistics.min, stored["d"].statistics.max) == (1, 3)
