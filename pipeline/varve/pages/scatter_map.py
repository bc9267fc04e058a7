"""The data of a map of points whose layers are chosen with a slider; `scatter_map.js` draws it.

Knows nothing of runs, nor of how positions were computed. Invariant: the JSON cannot end the script element that holds
it, and texts in it are cut.
"""

import json
import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varve.pages import label

_STEPS = 1000  # positions are whole numbers from -1000 to 1000
_MAX_TEXT, _MAX_NAME = 160, 40


@dataclass(frozen=True, slots=True)
class MapLayer:
    """Positions of all points by one feature.

    Attributes:
        name: of the feature.
        family: features of one family share a slider.
        layer: number of the encoder's layer, or None.
        positions: (N, 2) floats.
        variance: shares of the variance of the two axes; empty if the axes have none.
    """

    name: str
    family: str
    layer: int | None
    positions: ArrayLike
    variance: Sequence[float] = ()


def map_json(
    layers: Sequence[MapLayer],
    *,
    classes: Sequence[str],
    labels: Sequence[float],
    texts: Sequence[str],
    selected: str,
) -> str:
    """JSON of a map, safe inside a script element.

    Each layer is rotated and mirrored to be closest to the previous one of its family, so that the eye can follow the
    points.

    Args:
        layers: in the order of the slider.
        classes: names of classes; empty if points are coloured by a number or not at all.
        labels: (N,) number of the class of each point, or its value; NaN or a number outside of `classes` means none.
        texts: (N,) shown on hover; fewer if they are not known.
        selected: name of the layer to show first.
    """
    shown, previous = [], {}
    for layer in layers:
        places = _align(_as_positions(layer.positions), previous.get(layer.family))
        previous[layer.family] = places
        shown.append(_layer(layer, places))
    content = {
        "layers": shown,
        "classes": [label.label(name, _MAX_NAME) for name in classes],
        "labels": [_label(float(value), len(classes)) for value in labels],
        "texts": [label.label(text, _MAX_TEXT) for text in texts],
        "selected": label.label(selected, _MAX_NAME),
    }
    escaped = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        escaped = escaped.replace(character, f"\\u{ord(character):04x}")
    return escaped


def _layer(layer: MapLayer, places: NDArray[np.float64]) -> dict[str, object]:
    largest = float(np.abs(places).max(initial=0.0)) or 1.0
    steps = np.round(places / largest * _STEPS).astype("<i2")
    return {
        "name": label.label(layer.name, _MAX_NAME),
        "family": label.label(layer.family, _MAX_NAME),
        "layer": layer.layer,
        "places": b64encode(steps.tobytes()).decode(),
        "variance": [round(float(share), 4) if math.isfinite(share) else 0.0 for share in layer.variance],
    }


def _as_positions(positions: ArrayLike) -> NDArray[np.float64]:
    """(N, 2); what is not finite is moved to the centre."""
    places = np.asarray(positions, np.float64).reshape(-1, 2)
    return np.where(np.isfinite(places), np.clip(places, -1e150, 1e150), 0.0)


def _align(places: NDArray[np.float64], previous: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Rotate and mirror around the origin (orthogonal Procrustes, Schönemann 1966)."""
    if previous is None or len(previous) != len(places) or not places.any() or not previous.any():
        return places
    scaled = places / np.abs(places).max(), previous / np.abs(previous).max()
    left, _, right = np.linalg.svd(scaled[0].T @ scaled[1])
    return places @ (left @ right)


def _label(value: float, num_classes: int) -> float | int | None:
    if not math.isfinite(value):
        return None
    if num_classes:
        return int(value) if 0 <= value < num_classes else None
    return float(f"{value:.6g}")
