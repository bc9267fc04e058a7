"""What the models of a study are trained on: each feature, combinations of layers, the hand-crafted columns.

Knows nothing of rows, labels or training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from varve.encoder.feature_plan import Column
from varve.errors import JobError
from varve.probe.data.run_output import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What one model is trained on."""

    name: str
    kind: str  # single | concat | mix | handcrafted
    columns: tuple[Column, ...] = ()
    with_handcrafted: bool = False

    @property
    def family(self) -> str:
        """The feature that columns of several layers are of."""
        return self.columns[0].feature if self.columns else ""

    @property
    def layer(self) -> int | None:
        """The layer, where it is one."""
        one = self.kind == "single" and len(self.columns) == 1 and len(self.columns[0].layers) == 1
        return self.columns[0].layers[0] if one else None


def choose_inputs(output: Output, words: Sequence[str], *, beside: bool) -> tuple[list[Inputs], list[str]]:
    """What models are trained on: each feature, the combinations of layers, the hand-crafted columns alone.

    Args:
        output: of the run.
        words: of --features.
        beside: whether there are hand-crafted numbers to lay beside the vectors.

    Returns:
        (what models are trained on, notes for the user).

    Raises:
        JobError: a feature is not there or has not one vector to a row.
    """
    notes: list[str] = []
    listed: dict[str, Inputs] = {}
    for word in words:
        for name, columns in _find(output, word, notes).items():
            kind = "single" if len(columns) == 1 else "concat"
            listed[name] = Inputs(name=name, kind=kind, columns=columns, with_handcrafted=beside)
    if not words:
        msg = f"--features names none: there are {_told(output)}"
        raise JobError(msg)
    if not listed:
        msg = f"--features: {output.storage.uri} has no feature with one vector to a row: it has {_told(output)}"
        raise JobError(msg)
    combined = _combinations(list(listed.values()))
    alone = [Inputs(name="hand-crafted alone", kind="handcrafted", with_handcrafted=True)] if beside else []
    if beside:
        only = [Inputs(name=f"{one.name} alone", kind="single", columns=one.columns) for one in listed.values()]
        alone += only if len(only) == 1 else []
    return [*listed.values(), *combined, *alone], notes


def _find(output: Output, word: str, notes: list[str]) -> dict[str, tuple[Column, ...]]:
    """name → columns: `all`, a column, all layers of a feature, or columns joined by +."""
    features = output.features
    if word == "all":
        others = [name for name, column in features.items() if column.form != "vector"]
        if others:
            notes.append(f"left out, since they hold more than one vector to a row: {', '.join(others)}")
        return {name: (column,) for name, column in features.items() if column.form == "vector"}
    names = word.split("+")
    if len(names) == 1 and word not in features:
        layers = {name: (column,) for name, column in features.items() if column.feature == word}
        if layers:
            _refuse_forms([column for (column,) in layers.values()])
            return layers
    for name in names:
        if name not in features:
            msg = f"--features {word}: there is no feature {name!r}: there are {_told(output)}"
            raise JobError(msg)
    columns = tuple(features[name] for name in names)
    _refuse_forms(columns)
    return {word: columns}


def _refuse_forms(columns: Sequence[Column]) -> None:
    for column in columns:
        if column.form != "vector":
            msg = f"--features {column.name}: it holds {column.form}, and a probe takes one vector to a row"
            raise JobError(msg)


def _told(output: Output) -> str:
    return ", ".join(f"{name} ({column.form})" for name, column in output.features.items())


def _combinations(singles: Sequence[Inputs]) -> list[Inputs]:
    """All layers of a family side by side, and mixed."""
    families: dict[tuple[str, str, bool], list[Inputs]] = {}
    for one in singles:
        if one.layer is not None:
            (column,) = one.columns
            families.setdefault((one.family, column.pool, column.normalize), []).append(one)
    found = []
    for (family, *_), members in families.items():
        columns = tuple(column for one in members for column in one.columns)
        if len(columns) < 2 or len({column.width for column in columns}) > 1:
            continue
        beside = members[0].with_handcrafted
        found += [
            Inputs(name=f"{family}: all layers side by side", kind="concat", columns=columns, with_handcrafted=beside),
            Inputs(name=f"{family}: learned mix of layers", kind="mix", columns=columns, with_handcrafted=beside),
        ]
    return found
