import json
import math
from base64 import b64decode

import numpy as np
import pytest

from tests.unit.pages.plot_markup import HOSTILE
from varve.pages.scatter_map import MapLayer, map_json

RNG = np.random.default_rng(0)


def decoded(layers, **changes) -> dict:
    values = {"classes": [], "labels": [], "texts": [], "selected": "", **changes}
    content = json.loads(map_json(layers, **values))
    for layer in content["layers"]:
        layer["places"] = np.frombuffer(b64decode(layer["places"]), "<i2").reshape(-1, 2) / 1000
    return content


def test_positions_fill_the_range_to_three_decimals():
    positions = RNG.normal(size=(50, 2)) * 7
    (layer,) = decoded([MapLayer("cls_00", "cls", 0, positions, (0.5, 0.25))])["layers"]
    assert np.abs(layer["places"] - positions / np.abs(positions).max()).max() <= 0.0005
    assert layer["variance"] == [0.5, 0.25]


@pytest.mark.parametrize("mirror", [1, -1])
def test_layer_is_turned_back_to_the_previous_one_of_its_family(mirror):
    positions = RNG.normal(size=(60, 2)) * (3, 1)
    angle = 2.0
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ np.diag([1, mirror])
    other = RNG.normal(size=(60, 2))
    layers = [
        MapLayer("a_0", "a", 0, positions),
        MapLayer("b_0", "b", 0, other),
        MapLayer("a_1", "a", 1, 5 * positions @ turn),
    ]
    places = {layer["name"]: layer["places"] for layer in decoded(layers)["layers"]}
    assert np.abs(places["a_0"] - places["a_1"]).max() <= 0.0011
    assert np.abs(places["b_0"] - other / np.abs(other).max()).max() <= 0.0005


def test_json_cannot_end_its_script_element():
    text = map_json([], classes=["</script>", "&amp;"], labels=[], texts=["<!--<script>\u2028"], selected="<b>")
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text)["texts"] == ["<!--<script>"]


def test_labels_without_a_class_or_value_are_null():
    assert decoded([], classes=["a"], labels=[0, -1, 7, math.nan])["labels"] == [0, None, None, None]
    assert decoded([], labels=[0.5, math.inf, math.nan])["labels"] == [0.5, None, None]


@pytest.mark.parametrize(
    "positions", [np.zeros((0, 2)), np.zeros((3, 2)), np.full((3, 2), np.nan), [[1e308, -1e308], [0, np.inf]]]
)
def test_awkward_positions_stay_inside(positions):
    layers = [MapLayer("a", "a", 0, positions), MapLayer("b", "a", 1, positions)]
    assert all(np.abs(layer["places"]).max(initial=0) <= 1 for layer in decoded(layers)["layers"])


def test_large_map_with_long_texts_is_small():
    layers = [MapLayer(f"cls_{at}", "cls", at, RNG.normal(size=(5000, 2))) for at in range(13)]
    text = map_json(layers, classes=[HOSTILE] * 50, labels=[0] * 5000, texts=[HOSTILE] * 5000, selected="cls_3")
    assert len(text) < 1_500_000
