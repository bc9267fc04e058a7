"""Any JSON values are read: as they are, or as JSON text where a column holds several types."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from varve.config.source import Source
from varve.source.open_dataset import open_dataset

# Numbers keep their digits; a column of integers and fractions holds fractions, which have 53 bits.
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = (
    st.none() | st.booleans() | NUMBERS | st.text(max_size=4) | st.sampled_from(["2024-01-01", "\ud800", "5", "null"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


def without_surrogates(value):
    """The value as it is kept: U+FFFD instead of half a surrogate pair."""
    return json.loads(json.dumps(value).replace("\\ud800", "\\ufffd"))


def is_kept(kept, value) -> bool:
    if isinstance(kept, list) and isinstance(value, list):
        return len(kept) == len(value) and all(map(is_kept, kept, value))
    if isinstance(kept, dict) and isinstance(value, dict):  # keys of other rows are null
        return value.keys() <= kept.keys() and all(is_kept(kept[name], value.get(name)) for name in kept)
    return kept == value or (isinstance(kept, str) and json.loads(kept) == value)


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5), st.booleans())
def test_any_json_value_is_kept(tmp_path_factory, values, is_array):
    path = tmp_path_factory.mktemp("json") / "0.json"
    rows = [json.dumps({"text": "a", "kept": value}) for value in values]
    path.write_text(f"[{','.join(rows)}]" if is_array else "\n".join(rows))
    dataset = open_dataset(Source(dataset="json", data_files=str(path), text="text", keep=("kept",)))
    kept = [value for table in dataset.read(0) for value in table["kept"].to_pylist()]
    assert len(kept) == len(values)
    assert all(map(is_kept, kept, map(without_surrogates, values)))
