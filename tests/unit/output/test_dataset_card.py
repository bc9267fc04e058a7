"""The dataset card of an output, read by `datasets` itself."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from datasets import Features, load_dataset

import varve
from tests.outputs import column, write_output
from varve.output.card_features import card_features
from varve.output.dataset_card import CARD_NAME, update_card
from varve.output.feature_sets import set_path

ROWS = 30
KEPT = {"title": [f"t{row}" for row in range(ROWS)], "n": np.arange(ROWS, dtype=np.uint16)}


def vectors(width: int) -> np.ndarray:
    return np.random.default_rng(width).normal(size=(ROWS, width)).astype(np.float32)


@pytest.fixture
def path(tmp_path) -> str:
    features = {column("embedding", 8): vectors(8), column("small", 16, dtype="float16", layer=3): vectors(16)}
    return write_output(tmp_path / "out", features, KEPT, rows_per_part=12, errors=(5,))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def load(path: str, name: str | None = None, split: str = "train"):
    return load_dataset(path, name, split=split)


def stored(path: str) -> pa.Table:
    output = varve.open(path)
    return pa.concat_tables([table for _, table in output.tables(output.schema.names)])


def test_card_of_an_output_opens_it_by_its_path_alone(path):
    update_card(path)
    dataset, table = load(path), stored(path)
    assert dataset.features == Features.from_arrow_schema(table.schema)
    assert dataset.data.table.cast(table.schema).equals(table)


def test_card_of_further_sets_gives_each_a_configuration_of_its_own(path):
    update_card(path)
    write_output(set_path(path, "layers"), {column("cls", 4): vectors(4)}, {"title": KEPT["title"]}, rows_per_part=12)
    update_card(path)
    assert load(path).column_names[2:4] == ["embedding", "small"]
    assert load(path, "layers").column_names[:2] == ["title", "cls"]
    assert len(load(path)) == len(load(path, "layers")) == ROWS


@pytest.mark.parametrize("change", ["# My own card\n", "{card}\nMy remark\n", "{card}", "\ufffe"])
def test_card_changed_by_hand_is_kept(path, change):
    card = Path(path, CARD_NAME)
    update_card(path)
    by_hand = change.format(card=card.read_text().replace("rows of", "lines of"))
    card.write_text(by_hand)
    update_card(path)
    assert card.read_text() == by_hand


def test_card_is_the_same_when_written_again(path):
    update_card(path)
    before = Path(path, CARD_NAME).stat()
    update_card(path)
    assert Path(path, CARD_NAME).stat().st_mtime_ns == before.st_mtime_ns


def test_card_of_nested_types_keeps_them(tmp_path):
    path = write_output(tmp_path / "out", {column("vectors", 4, form="windows"): vectors(4)}, KEPT)
    update_card(path)
    assert load(path).features == Features.from_arrow_schema(varve.open(path).schema)


def test_card_features_of_every_type_read_as_the_types_of_arrow():
    struct = pa.struct([("x", pa.int64()), ("y", pa.list_(pa.string()))])
    types = [pa.list_(struct), struct, pa.large_list(pa.float32()), pa.decimal128(10, 2), pa.timestamp("us", "UTC")]
    types += [pa.list_(pa.list_(pa.int32(), 2)), pa.large_string(), pa.date32(), pa.binary(), pa.list_(pa.uint8(), 3)]
    schema = pa.schema([(f"c{number}", arrow_type) for number, arrow_type in enumerate(types)])
    entry = yaml.safe_load(yaml.safe_dump(card_features(schema), sort_keys=False))
    assert Features._from_yaml_list(entry) == Features.from_arrow_schema(schema)  # noqa: SLF001 (what a card is read with)


def test_card_of_hostile_names_shows_them_as_text(tmp_path):
    name = "<script>alert(1)</script>|`x`\n# title"
    path = write_output(tmp_path / "out", {column("e", 4): vectors(4)}, {name: KEPT["title"]}, model=name)
    update_card(path)
    card = Path(path, CARD_NAME).read_text()
    body = card.split("---\n", 2)[2]
    assert load(path).column_names[0] == name
    assert "\n# title" not in body
    assert "`<script>alert(1)</script>\\|'x' # title`" in body


def test_card_of_an_output_without_rows_is_not_written(tmp_path):
    path = write_output(tmp_path / "out", {column("e", 4): np.zeros((0, 4), np.float32)}, {"title": []}, shards=[0])
    update_card(path)
    assert not Path(path, CARD_NAME).exists()
