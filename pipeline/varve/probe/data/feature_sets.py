"""Chooses the inputs of each model of a study: single features, combinations of layers, hand-crafted columns.

Knows nothing of rows, labels or training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from varve.encoder.feature_plan import Column
from varve.errors import JobError
from varve.output.run_output import Output

# Forms of a column → description for messages; the others are described by their name.
_FORMS = {
    "sparse": "sparse vectors",
    "late": "one vector per token (late interaction)",
    "clusters": "one vector per cluster of tokens (late interaction)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSet:
    """The inputs of one model."""

    name: str
    kind: str  # single | concat | mix | handcrafted
    columns: tuple[Column, ...] = ()
    with_handcrafted: bool = False

    @property
    def family(self) -> str:
        """The feature whose layers the columns are; empty without columns."""
        return self.columns[0].feature if self.columns else ""

    @property
    def layer(self) -> int | None:
        """The layer of a single feature that has one layer."""
        one = self.kind == "single" and len(self.columns[0].layers) == 1
        return self.columns[0].layers[0] if one else None


def choose_feature_sets(
    output: Output, requested: Sequence[str], *, with_handcrafted: bool
) -> tuple[list[FeatureSet], list[str]]:
    """Choose what models are trained on.

    Args:
        output: of the run.
        requested: names of --features: `all`, a column, a feature with all its layers, or columns joined by +.
        with_handcrafted: whether there are hand-crafted columns.

    Returns:
        (one feature set per model, notes for the user).

    Raises:
        JobError: a feature is missing or does not have one vector per row.
    """
    notes: list[str] = []
    chosen: dict[str, FeatureSet] = {}
    for request in requested:
        for name, columns in _resolve(output, request, notes).items():
            kind = "single" if len(columns) == 1 else "concat"
            chosen[name] = FeatureSet(name=name, kind=kind, columns=columns, with_handcrafted=with_handcrafted)
    if not chosen:
        msg = f"--features: no feature with one vector per row is chosen: the run has {_list_features(output)}"
        raise JobError(msg)
    singles = list(chosen.values())
    alone: list[FeatureSet] = []
    if with_handcrafted:
        alone.append(FeatureSet(name="hand-crafted alone", kind="handcrafted", with_handcrafted=True))
        if len(singles) == 1:
            alone.append(FeatureSet(name=f"{singles[0].name} alone", kind="single", columns=singles[0].columns))
    return [*singles, *_combine_layers(singles), *alone], notes


def _resolve(output: Output, request: str, notes: list[str]) -> dict[str, tuple[Column, ...]]:
    """Name → columns of each feature set that one name of --features means."""
    features = output.features
    if request == "all":
        others = [name for name, column in features.items() if column.form != "vector"]
        if others:
            notes.append(f"left out, because they do not hold one dense vector per row: {', '.join(others)}")
        return {name: (column,) for name, column in features.items() if column.form == "vector"}
    chosen = {name: (column,) for name, column in features.items() if column.feature == request}
    if request in features or not chosen:
        names = request.split("+")
        for name in names:
            if name not in features:
                msg = f"--features {request}: the run has no feature {name!r}: it has {_list_features(output)}"
                raise JobError(msg)
        chosen = {request: tuple(features[name] for name in names)}
    for column in (column for columns in chosen.values() for column in columns):
        if column.form != "vector":
            form = _FORMS.get(column.form, column.form)
            msg = f"--features {column.name}: it holds {form}: expected one dense vector per row"
            raise JobError(msg)
    return chosen


def _list_features(output: Output) -> str:
    return ", ".join(f"{name} ({column.form})" for name, column in output.features.items())


def _combine_layers(singles: Sequence[FeatureSet]) -> list[FeatureSet]:
    """All layers of a feature concatenated, and mixed."""
    families: dict[tuple[str, str, bool], list[FeatureSet]] = {}
    for one in singles:
        if one.layer is not None:
            (column,) = one.columns
            families.setdefault((one.family, column.pool, column.normalize), []).append(one)
    combined = []
    for (family, *_), members in families.items():
        columns = tuple(column for one in members for column in one.columns)
        if len(columns) < 2 or len({column.width for column in columns}) > 1:
            continue
        combined += [
            FeatureSet(name=name, kind=kind, columns=columns, with_handcrafted=members[0].with_handcrafted)
            for name, kind in (
                (f"{family}: all layers side by side", "concat"),
                (f"{family}: learned mix of layers", "mix"),
            )
        ]
    return combined
