import numpy as np
import pyarrow as pa
import pytest

from tests.probes import ROWS, problem, read_rows, train
from varve.errors import JobError
from varve.probe.data import split


def test_classes_of_different_sizes_are_weighted_and_rare_ones_reported(output):
    labels = np.where(np.arange(ROWS) % 11 == 0, "rare", "usual").astype(object)
    labels[5] = "once"
    study = train(output(label=labels.tolist()), features=("cls_01",))
    assert study.primary == "macro_f1"
    assert any("weighted to count the same" in note for note in study.notes)


def test_rows_without_features_or_label_are_left_out_and_counted(output):
    _, target = problem()
    labels = np.array(["a", "b", "c"], object)[target]
    labels[10:30] = None
    rows = read_rows(output(label=labels.tolist(), errors=range(5)))
    assert rows.left_out == {"error in the run": 5, "no label": 20}
    assert sum(rows.sizes.values()) == ROWS - 25


def test_numbers_that_are_not_finite_are_missing_labels(output):
    sizes = [np.inf, -np.inf, np.nan, None, *np.arange(ROWS - 4.0).tolist()]
    assert read_rows(output(size=sizes), "size").left_out == {"no size": 4}


def test_rows_without_a_value_in_the_split_column_are_left_out(output):
    splits = [None if row < 30 else "test" if row < 150 else "train" for row in range(ROWS)]
    rows = read_rows(output(split=splits))
    assert rows.left_out == {"no split": 30}
    assert rows.sizes["test"] == 120


def test_groups_in_several_splits_are_named(output):
    path = output(sides=[("train", "val", "test")[row % 3] for row in range(ROWS)])
    with pytest.raises(JobError, match=r"200 group\(s\).*'doc 0' \(train and validation and test\)"):
        read_rows(path, split="sides", groups="doc")
    followed = output("followed", split=[("train", "test")[row % 2] for row in range(ROWS)])
    with pytest.raises(JobError, match=r"^the column `split`, --groups doc: .* --split random"):
        read_rows(followed, groups="doc")


def test_split_column_is_used_and_missing_validation_rows_come_from_training(output):
    splits = ["test" if row < 150 else "train" for row in range(ROWS)]
    rows = read_rows(output(split=splits), groups="doc")
    assert rows.sizes["test"] == 150
    assert rows.sizes["validation"] == pytest.approx(450 * 0.15, abs=5)
    assert (rows.split[:150] == split.TEST).all()
    assert any("the column `split`" in note for note in rows.notes)
    assert read_rows(output("again", split=splits), split="random").sizes["test"] == pytest.approx(90, abs=2)


WRONG = [
    ({"label": "nothing"}, "no column 'nothing'"),
    ({"label": "text"}, "it holds text, 600 different values"),
    ({"label": "one"}, "every row is of the class 'a'"),
    ({"label": "label", "handcrafted": ("label",)}, "--with label: "),
    ({"label": "label", "handcrafted": ("text",)}, "--with text: it holds text"),
    ({"label": "label", "handcrafted": ("nested",)}, "column 'nested' holds list"),
    ({"label": "label", "features": ("cls_07",)}, "--features cls_07: "),
    ({"label": "label", "split": "sides", "groups": "doc"}, "appear in more than one split"),
    ({"label": "label", "split": "doc"}, "--split doc: it holds 'doc 0'"),
    ({"label": "label", "split": "nested"}, "--split nested: it holds list"),
    ({"label": "label", "groups": "nested"}, "--groups nested: it holds list"),
    ({"label": "late", "split": "sides"}, "every training row is of the class 'a'"),
    ({"label": "late_size", "split": "sides"}, "every training row has the value 2.5"),
    ({"label": "huge"}, "expected numbers up to 3.4e"),
    ({"label": "label", "groups": "one"}, "the groups of one are too few or too large"),
    ({"label": "label", "join": "x.csv"}, "--join needs --on"),
    ({"label": "label", "join": "/nowhere/x.csv", "on": "doc"}, "--join /nowhere/x.csv cannot be read"),
    ({"label": "label", "task": "regression"}, "it holds text: expected numbers"),
    ({"label": "label", "model": "ridge"}, "--model ridge: --label label holds 3 classes"),
    ({"label": "length", "class_weights": "balanced"}, "--class-weights balanced: the label holds numbers"),
    ({"label": "empty"}, "600 with no empty"),
    ({"label": "own", "task": "classification"}, "600 classes of own have too few rows each"),
    (
        {"label": "label", "features": ()},
        "--features: no feature with one vector per row is chosen: the run has cls_00",
    ),
    ({"label": "label", "chosen_text": "length"}, "--text length: it holds double"),
]


@pytest.mark.parametrize(("question", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_wrong_question_is_rejected(question, message, output):
    path = output(
        one=["a"] * ROWS,
        nested=[[1.0]] * ROWS,
        sides=[("train", "val", "test")[row % 3] for row in range(ROWS)],
        late=["ab"[row % 3 > 0] if row < 500 else "a" for row in range(ROWS)],
        late_size=[2.5 + (row % 3) for row in range(ROWS)],
        huge=[1e300, *[1.5] * (ROWS - 1)],
        empty=pa.nulls(ROWS, pa.string()),
        own=list(range(ROWS)),
    )
    model, text = question.get("model", "auto"), question.get("chosen_text", "none")
    columns = {key: value for key, value in question.items() if key not in {"model", "chosen_text"}}
    with pytest.raises(JobError, match=message):
        train(path, model=model, text=text, **columns)
