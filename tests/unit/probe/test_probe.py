"""The parts of a probe, against scikit-learn and against what must be refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.outputs import column, write_output
from varve.cli.main import run_command
from varve.config.job import Job
from varve.errors import JobError
from varve.output.manifest import JOB_NAME
from varve.output.vectors import read_vectors
from varve.planning.plan import make_plan
from varve.probe.data import split
from varve.probe.data.dataset import Question
from varve.probe.data.feature_matrix import Matrix
from varve.probe.data.handcrafted import encode, learn
from varve.probe.data.memory_limit import default_bytes
from varve.probe.data.run_output import Output
from varve.probe.models.head import Shape
from varve.probe.models.linear import Data, fit_logistic, fit_ridge
from varve.probe.models.metrics import ClassFigures, ValueFigures, calibrate, judge
from varve.probe.models.study import study

ROWS, WIDTH, CLASSES = 600, 12, 3
MEMORY = 10**9


def problem(rows=ROWS, width=WIDTH, classes=CLASSES, *, noise=1.5, seed=0):
    """Vectors around the centre of their class."""
    draw = np.random.default_rng(seed)
    target = draw.integers(classes, size=rows)
    centres = draw.normal(size=(classes, width))
    return (centres[target] + noise * draw.normal(size=(rows, width))).astype(np.float32), target.astype(np.int32)


@pytest.fixture
def output(tmp_path):
    """(changes) → the folder of a run with two layers of cls, one of which knows the label, and kept columns."""

    def make(name="run", *, errors=(), dtype="float32", **kept) -> str:
        inputs, target = problem()
        draw = np.random.default_rng(1)
        features = {
            column("cls_00", WIDTH, layer=0, dtype=dtype): draw.normal(size=inputs.shape).astype(np.float32),
            column("cls_01", WIDTH, layer=1, dtype=dtype): inputs,
        }
        labels = np.array(["ham", "spam", "eggs"], object)[target]
        columns = {
            "label": labels.tolist(),
            "doc": [f"doc {row // 3}" for row in range(ROWS)],
            "length": (target * 0.7 + draw.normal(size=ROWS)).tolist(),
            "text": [f"{word} number {row}" for row, word in enumerate(draw.choice(["red", "blue"], ROWS))],
            **kept,
        }
        return write_output(tmp_path / name, features, columns, errors=errors)

    return make


def ask(path, label="label", *, memory=MEMORY, text="none", model="auto", **changes):
    return study(path, Question(label=label, **changes), model=model, text=text, memory_bytes=memory)


def matrices(inputs, target, tmp_path=None):
    ends = [0, len(inputs) * 7 // 10, len(inputs)]
    made = []
    for name, (start, stop) in enumerate(pairwise(ends)):
        part = np.ascontiguousarray(inputs[start:stop])
        path = None
        if tmp_path:
            path = tmp_path / str(name)
            part.tofile(path)
        made.append(Matrix(stop - start, inputs.shape[1], None if path else part, path))
    return made, (target[: ends[1]], target[ends[1] :])


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_from_files_ends_where_scikit_learn_ends(classes, weighted, tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    inputs, target = problem(classes=classes)
    inputs = inputs * 5 + 3
    inputs[:, 0] *= 1e-33  # real checkpoints have such dimensions; standardised they count as any other
    weights = np.linspace(0.5, 2, classes).astype(np.float32) if weighted else None
    shape = Shape(vector_width=WIDTH, mixed_layers=0, handcrafted_width=0, hidden=(), outputs=classes)
    (train, validation), targets = matrices(inputs, target, tmp_path)
    data = Data(train, validation, *targets, class_weights=weights)
    fitted = fit_logistic(data, shape, sample_rows=150)
    whole = train.rows(0, train.num_rows)
    scaler = StandardScaler().fit(whole)
    row_weights = None if weights is None else weights[targets[0]]

    def expected(c: float) -> np.ndarray:
        model = LogisticRegression(C=c, max_iter=2000, tol=1e-8)
        model.fit(scaler.transform(whole), targets[0], sample_weight=row_weights)
        return model.predict_proba(scaler.transform(validation.rows(0, validation.num_rows)))

    held = fit_logistic(replace(data, train=Matrix(train.num_rows, WIDTH, whole)), shape)
    for found in (fitted, held):
        assert np.abs(found.head.scores_of(validation) - expected(found.chosen["C"])).max() < 0.005
    part = fit_logistic(replace(data, train=Matrix(150, WIDTH, whole[:150]), target=targets[0][:150]), shape)
    assert (
        np.abs(part.head.scores_of(validation) - expected(part.chosen["C"])).max() > 0.02
    )  # a sample alone ends elsewhere


def test_ridge_is_that_of_scikit_learn():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    inputs, _ = problem()
    target = (inputs @ np.arange(WIDTH) + np.random.default_rng(2).normal(size=ROWS)).astype(np.float32) + 40
    (train, validation), targets = matrices(inputs + 7, target)
    shape = Shape(vector_width=WIDTH, mixed_layers=0, handcrafted_width=0, hidden=(), outputs=1)
    fitted = fit_ridge(Data(train, validation, *targets, class_weights=None), shape)
    scaler = StandardScaler().fit(train.held)
    model = Ridge(alpha=fitted.chosen["alpha"]).fit(scaler.transform(train.held), targets[0])
    expected = model.predict(scaler.transform(validation.held))
    assert np.allclose(fitted.head.scores_of(validation)[:, 0], expected, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 5])
def test_figures_are_those_of_scikit_learn_under_any_weights(classes):
    from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

    draw = np.random.default_rng(0)
    target = draw.integers(classes, size=300)
    scores = np.round(draw.dirichlet(np.ones(classes), 300) + 0.3 * np.eye(classes)[target], 1)  # with ties
    scores = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float64)
    times = draw.integers(0, 4, 300)
    repeated = np.repeat(np.arange(300), times)
    found = ClassFigures(scores, target)(times.astype(float))
    t, s = target[repeated], scores[repeated]
    assert found["accuracy"] == pytest.approx(accuracy_score(t, s.argmax(axis=1)))
    assert found["macro_f1"] == pytest.approx(f1_score(t, s.argmax(axis=1), average="macro"))
    assert found["log_loss"] == pytest.approx(log_loss(t, np.maximum(s, 1e-12), labels=range(classes)), rel=1e-3)
    expected = roc_auc_score(t, s[:, 1] if classes == 2 else s, multi_class="ovr", average="macro")
    assert found["auc"] == pytest.approx(expected)


def test_value_figures_are_those_of_scikit_learn_and_scipy():
    from scipy.stats import spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score

    draw = np.random.default_rng(0)
    target = draw.normal(size=200)
    guess = (target + draw.normal(size=200)).astype(np.float32)
    found = ValueFigures(guess[:, None], target)()
    assert found["r2"] == pytest.approx(r2_score(target, guess), abs=1e-6)
    assert found["mae"] == pytest.approx(mean_absolute_error(target, guess), abs=1e-6)
    assert found["spearman"] == pytest.approx(spearmanr(target, guess).statistic, abs=1e-6)


def test_intervals_are_wider_where_groups_say_the_same_thing():
    draw = np.random.default_rng(0)
    right = np.repeat(draw.random(40) < 0.7, 10)
    target = np.zeros(400, np.int64)
    scores = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9]).astype(np.float32)
    alone = judge(scores, target, np.arange(400), 0).figures["accuracy"]
    grouped = judge(scores, target, np.repeat(np.arange(40), 10), 0).figures["accuracy"]
    assert alone.value == grouped.value
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_calibration_of_true_probabilities_is_near_zero_and_of_boasts_is_not():
    draw = np.random.default_rng(0)
    sure = draw.uniform(0.5, 1, 20_000)
    target = (draw.random(20_000) > sure).astype(int)
    assert calibrate(np.stack([sure, 1 - sure], axis=1), target).error < 0.02
    boast = np.full((20_000, 2), [0.99, 0.01])
    assert calibrate(boast, target).error == pytest.approx(0.99 - sure.mean(), abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_split_keeps_groups_whole_and_classes_in_proportion(seed):
    draw = np.random.default_rng(seed)
    groups = draw.zipf(1.6, 3000) % 700
    target = (groups * 7919 % 10 < 3).astype(int)  # of a group
    codes = np.unique(groups, return_inverse=True)[1]
    sides = split.assign(target, codes, seed)
    assert all(len(set(sides[codes == code])) == 1 for code in range(codes.max() + 1))
    single = split.assign(target, np.arange(3000), seed)
    for side, share in enumerate((0.7, 0.15, 0.15)):
        assert (single == side).mean() == pytest.approx(share, abs=0.01)
        assert target[single == side].mean() == pytest.approx(target.mean(), abs=0.01)
    assert (split.assign(target, codes, seed) == sides).all()
    assert (split.assign(target, codes, seed + 9) != sides).any()


def test_handcrafted_columns_are_standardised_by_training_rows_and_say_what_they_lack():
    table = pa.table(
        {
            "n": [1.0, 3.0, None, float("nan")],
            "when": [1.7e9, 1.7e9 + 1, 1.7e9 + 2, 1.7e9 + 3],
            "yes": [True, False, True, True],
            "kind": pa.array(["a", "b", "a", None]).dictionary_encode(),
            "same": [4, 4, 4, 4],
        }
    )
    learned = [learn(name, table[name]) for name in table.column_names]
    assert learned[4] == (None, "--with same: is 4 in every training row: left out")
    assert "2 of 4 training rows lack a value" in learned[0][1]
    columns = [made for made, _ in learned if made]
    names = [name for made in columns for name in made.names]
    assert names == ["n", "n is missing", "when", "yes", "kind=a", "kind=b", "kind is missing"]
    found = dict(zip(names, encode(columns, table).T, strict=True))
    assert found["n"].tolist() == [-1, 1, 0, 0]
    assert found["n is missing"].tolist() == [0, 0, 1, 1]
    assert found["when"].std() == pytest.approx(1, abs=1e-6)  # seconds since 1970 do not fit float32
    assert found["kind=a"].tolist() == [1, 0, 1, 0]
    unseen = pa.table({"n": [5], "when": [1.7e9], "yes": [None], "kind": ["z"]})
    assert np.isfinite(encode(columns, unseen)).all()


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_stored_dtypes_are_read_back_as_vectors(dtype, output):
    opened = Output.open(output(dtype=dtype))
    inputs, _ = problem()
    found = read_vectors(opened.read(opened.manifest.parts[1], stored_of(opened)), opened.features["cls_01"])
    expected = inputs[200:400]
    if dtype == "binary":
        assert (np.sign(found) == np.where(expected > 0, 1, -1)).all()
    else:
        assert np.abs(found - expected).max() < 0.03
    assert found.dtype == np.float32


def stored_of(opened):
    from varve.probe.data.run_output import stored_names

    return stored_names([opened.features["cls_01"]])


def test_best_layer_is_found_and_figures_are_the_same_again(output):
    path = output()
    first, again = ask(path), ask(path)
    assert first.best.name in {"cls_01", "cls: all layers side by side", "cls: learned mix of layers"}
    figures = {result.name: result.judged.figures for result in first.results}
    assert figures == {result.name: result.judged.figures for result in again.results}
    assert figures["cls_01"]["accuracy"].low > figures["cls_00"]["accuracy"].high
    mix = next(result for result in first.results if result.kind == "mix")
    assert mix.layer_weights[1] > 0.6


def test_features_of_one_layer_each_are_not_taken_for_layers_of_one_feature(tmp_path):
    inputs, target = problem(rows=60)
    features = {
        column("sent_cls", WIDTH, layer=6): inputs,
        column("sent_mean", WIDTH, layer=6, pool="mean"): inputs,
        column("word_05", WIDTH, layer=5): inputs,
        column("word_06", WIDTH, layer=6): inputs,
    }
    path = write_output(tmp_path / "run", features, {"label": target.tolist()})
    found = {result.name: result.family for result in ask(path).results if result.kind != "baseline"}
    combined = {"word: all layers side by side": "word", "word: learned mix of layers": "word"}
    assert found == {
        "sent_cls": "sent_cls", "sent_mean": "sent_mean", "word_05": "word", "word_06": "word", **combined
    }  # fmt: skip
    assert [result.name for result in ask(path, features=("word",)).results[:2]] == ["word_05", "word_06"]
    with pytest.raises(JobError, match="there is no feature 'sent'"):
        ask(path, features=("sent",))


def test_files_beyond_memory_give_what_memory_gives(output):
    path = output()
    held, filed = ask(path, features=("cls_01",)), ask(path, features=("cls_01",), memory=1)
    here, there = (result.judged.figures["accuracy"].value for result in (held.results[0], filed.results[0]))
    assert here == pytest.approx(there, abs=0.02)


def test_shuffled_labels_are_at_chance(output):
    labels = np.random.default_rng(3).permutation(np.repeat(["a", "b"], ROWS // 2)).tolist()
    for model in ("logistic", "mlp"):
        found = ask(output(f"run-{model}", label=labels), features=("cls_01",), model=model).results[0]
        assert found.judged.figures["auc"].low < 0.5 < found.judged.figures["auc"].high + 0.02


def test_mlp_with_handcrafted_columns_knows_what_neither_knows_alone(tmp_path):
    draw = np.random.default_rng(5)
    side, sign = draw.random((2, ROWS)) < 0.5
    inputs = (draw.normal(size=(ROWS, 4)) + 2 * side[:, None]).astype(np.float32)
    kept = {"label": np.where(side ^ sign, "same", "other").tolist(), "sign": sign.tolist()}
    path = write_output(tmp_path / "run", {column("cls_01", 4, layer=1): inputs}, kept)
    found = ask(path, features=("cls_01",), handcrafted=("sign",), model="mlp")
    figures = {result.name: result.judged.figures["accuracy"].value for result in found.results}
    assert figures["cls_01"] > max(figures["hand-crafted alone"], figures["cls_01 alone"]) + 0.15


def test_handcrafted_columns_that_never_differ_are_left_out_and_nothing_is_trained_on_them(output):
    found = ask(output(), features=("cls_01",), handcrafted=("truncated",))
    assert [result.name for result in found.results] == ["cls_01", "majority class"]
    assert "--with truncated: is 0 in every training row: left out" in found.notes


def test_numbers_are_a_regression(output):
    inputs, _ = problem()
    found = ask(output(score=(inputs[:, 2] * 3 + 10).tolist()), "score", features=("cls_01", "cls_00"))
    figures = {result.name: result.judged.figures for result in found.results}
    assert found.best.name == "cls_01"
    assert figures["cls_01"]["r2"].value > 0.99
    assert figures["mean of the label"]["r2"].value < 0.05
    network = ask(output("again", score=(inputs[:, 2] * 3 + 10).tolist()), "score", features=("cls_01",), model="mlp")
    assert network.results[0].judged.figures["mae"].value < 1


@pytest.mark.parametrize("rows", [20, 30, 40, 99])
def test_few_numbers_are_split_like_many(rows):
    strata = split.strata_of(np.random.default_rng(0).normal(size=rows))
    sizes = np.bincount(split.assign(strata, np.arange(rows), seed=0), minlength=3)
    assert sizes == pytest.approx([rows * 0.7, rows * 0.15, rows * 0.15], abs=3)
    assert sizes.min() >= 2


def test_unlike_classes_are_weighted_and_rare_ones_told(output):
    labels = np.where(np.arange(ROWS) % 11 == 0, "rare", "usual").astype(object)
    labels[5] = "once"
    found = ask(output(label=labels.tolist()), features=("cls_01",))
    assert found.primary == "macro_f1"
    assert any("weighted to count the same" in note for note in found.notes)


def test_rows_without_features_or_label_are_left_out_and_counted(output):
    _, target = problem()
    labels = np.array(["a", "b", "c"], object)[target]
    labels[10:30] = None
    found = ask(output(label=labels.tolist(), errors=range(5)), features=("cls_01",))
    assert found.rows.left_out == {"error in the run": 5, "no label": 20}
    assert sum(found.rows.sizes.values()) == ROWS - 25


def test_numbers_that_are_not_finite_are_no_label(output):
    sizes = [np.inf, -np.inf, np.nan, None, *np.arange(ROWS - 4.0).tolist()]
    found = ask(output(size=sizes), "size", features=("cls_01",))
    assert found.rows.left_out == {"no size": 4}


def test_rows_that_a_column_split_says_nothing_of_are_left_out(output):
    sides = [None if row < 30 else "test" if row < 150 else "train" for row in range(ROWS)]
    found = ask(output(split=sides), features=("cls_01",))
    assert found.rows.left_out == {"no split": 30}
    assert found.rows.sizes["test"] == 120


def test_joined_table_brings_columns_by_key(output, tmp_path):
    keys = [f"doc {row}" for row in range(ROWS // 3 - 1)][::-1]
    lines = "".join(json.dumps({"doc": key, "weight": int(key.split()[1])}) + "\n" for key in keys)
    (tmp_path / "more.jsonl").write_text(lines)
    found = ask(output(), features=("cls_01",), handcrafted=("weight",), join=str(tmp_path / "more.jsonl"), on="doc")
    assert any("3 rows of the run have no doc there" in note for note in found.notes)
    assert [made.name for made in found.rows.columns] == ["weight"]
    order = np.argsort(found.rows.handcrafted[:, 0], kind="stable")[1:-3]
    assert (np.diff(order) > 0).mean() > 0.9


def test_categories_are_keys_like_the_values_that_they_stand_for(output, tmp_path):
    keys = pa.array([f"doc {row}" for row in range(ROWS // 3)]).dictionary_encode()
    table = pa.table({"doc": keys, "weight": np.arange(ROWS // 3)})
    pq.write_table(table, tmp_path / "more.parquet")
    asked = {"handcrafted": ("weight",), "join": str(tmp_path / "more.parquet"), "on": "doc"}
    found = ask(output(), features=("cls_01",), **asked)
    assert [made.name for made in found.rows.columns] == ["weight"]
    assert not any("have no doc there" in note for note in found.notes)


def test_joined_file_without_a_key_is_told_as_such(output, tmp_path):
    (tmp_path / "more.csv").write_text("doc,weight\n")
    with pytest.raises(JobError, match="no key in the file"):
        ask(output(), handcrafted=("weight",), join=str(tmp_path / "more.csv"), on="doc")


def test_blank_cells_of_a_joined_csv_are_no_class_and_no_key(output, tmp_path):
    kinds = {doc: ("", "ham", "spam")[doc % 3] for doc in range(ROWS // 3)}
    lines = [f"doc {doc},{kind}\n" for doc, kind in kinds.items()]
    (tmp_path / "kinds.csv").write_text("".join(["doc,kind\n", *lines, ",ham\n", ",spam\n"]))
    docs = [None, None, *(f"doc {row // 3}" for row in range(2, ROWS))]
    found = ask(output(doc=docs), "kind", features=("cls_01",), join=str(tmp_path / "kinds.csv"), on="doc")
    assert found.rows.classes == ("ham", "spam")
    assert found.rows.left_out == {"no kind": 3 * sum(not kind for kind in kinds.values())}
    assert any("2 rows of the run have no doc there" in note for note in found.notes)


WRONG = [
    ({"label": "nothing"}, "there is no column 'nothing'"),
    ({"label": "text"}, "it holds text, 600 different values"),
    ({"label": "one"}, "every row is of the class 'a'"),
    ({"label": "label", "handcrafted": ("label",)}, "that is the label itself"),
    ({"label": "label", "handcrafted": ("text",)}, "--with text: it holds text"),
    ({"label": "label", "handcrafted": ("nested",)}, "column 'nested' holds list"),
    ({"label": "label", "features": ("cls_07",)}, "there is no feature 'cls_07'"),
    ({"label": "label", "split": "sides", "groups": "doc"}, "stand on more than one side"),
    ({"label": "label", "split": "doc"}, "--split doc: it holds 'doc 0'"),
    ({"label": "label", "split": "nested"}, "--split nested: it holds list"),
    ({"label": "label", "groups": "nested"}, "--groups nested: it holds list"),
    ({"label": "late", "split": "sides"}, "every training row is of the class 'a'"),
    ({"label": "late_size", "split": "sides"}, "every training row has 2.5"),
    ({"label": "huge"}, "expected numbers up to 3.4e"),
    ({"label": "label", "groups": "one"}, "rows would be left for"),
    ({"label": "label", "join": "x.csv"}, "--join needs --on"),
    ({"label": "label", "join": "/nowhere/x.csv", "on": "doc"}, "can't be read"),
    ({"label": "label", "task": "regression"}, "it holds text: expected numbers"),
    ({"label": "label", "model": "ridge"}, "--model ridge: --label label holds 3 classes"),
    ({"label": "length", "class_weights": "balanced"}, "--class-weights balanced: the label holds numbers"),
    ({"label": "empty"}, "can be learned from"),
    ({"label": "own", "task": "classification"}, "600 classes of own have too few rows each"),
    ({"label": "label", "features": ()}, "--features names none: there are cls_00"),
    ({"label": "label", "chosen_text": "length"}, "--text length: it holds double"),
]


@pytest.mark.parametrize(("question", "told"), WRONG, ids=[told[:30] for _, told in WRONG])
def test_wrong_question_is_refused_in_words(question, told, output):
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
    asked = {key: value for key, value in question.items() if key not in {"model", "chosen_text"}}
    with pytest.raises(JobError, match=told.replace("(", r"\(")):
        ask(path, model=model, text=text, **asked)


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_seed_that_nothing_takes_exits_with_2(seed, output, tmp_path, capsys):
    assert run_command(["probe", output(), "--label", "label", "--seed", seed, "--output", str(tmp_path / "p")]) == 2
    assert f"--seed: {seed} is not allowed: expected 0 to 4294967295" in capsys.readouterr().err


def test_report_is_written_and_model_read_where_the_locale_is_not_utf8(output, tmp_path):
    path = output(word=["gr\u00fcn", "rot"] * (ROWS // 2))
    asked = ["--label", "word", "--features", "cls_00", "--text", "none", "--output", str(tmp_path / "p")]
    env = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    for argv in (["probe", path, *asked], ["predict", str(tmp_path / "p"), path]):
        done = subprocess.run([sys.executable, "-m", "varve", *argv], env=env, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    assert "gr\u00fcn" in (tmp_path / "p/report.html").read_text("utf-8")


def test_predictions_carry_columns_along_but_none_of_their_own_names(output, tmp_path, capsys):
    path, probe = output(prediction=["old"] * ROWS), str(tmp_path / "p")
    assert (
        run_command(["probe", path, "--label", "label", "--features", "cls_01", "--text", "none", "--output", probe])
        == 0
    )
    assert run_command(["predict", probe, path, "--keep", "prediction"]) == 2
    assert "--keep prediction: predictions have a column of that name" in capsys.readouterr().err
    assert run_command(["predict", probe, path, "--keep", "doc, length"]) == 0
    part = next(Path(path).glob("predictions/label/*.parquet"))
    assert pq.read_schema(part).names[:3] == ["doc", "length", "prediction"]


def test_torn_groups_are_named(output):
    path = output(sides=[("train", "val", "test")[row % 3] for row in range(ROWS)])
    with pytest.raises(JobError, match=r"200 group\(s\).*'doc 0' \(train and validation and test\)"):
        ask(path, split="sides", groups="doc")
    followed = output("followed", split=[("train", "test")[row % 2] for row in range(ROWS)])
    with pytest.raises(JobError, match=r"^the column `split`, --groups doc: .* say --split random"):
        ask(followed, groups="doc")


def test_split_column_is_followed_and_a_missing_validation_comes_from_training(output):
    sides = ["test" if row < 150 else "train" for row in range(ROWS)]
    found = ask(output(split=sides), features=("cls_01",), groups="doc")
    assert found.rows.sizes["test"] == 150
    assert found.rows.sizes["validation"] == pytest.approx(450 * 0.15, abs=5)
    assert (found.rows.split[:150] == split.TEST).all()
    assert any("as the column `split` says" in note for note in found.notes)
    assert ask(output("again", split=sides), features=("cls_01",), split="random").rows.sizes["test"] == pytest.approx(
        90, abs=2
    )


def told_of(path, folder, capsys, *argv) -> str:
    """What the command tells its user, once it has written everything into the folder."""
    assert run_command(["probe", path, *argv, "--features", "cls_01", "--text", "none", "--output", str(folder)]) == 0
    assert {entry.name for entry in folder.iterdir()} == {"probe.json", "model", "layers.svg", "report.html"}
    return capsys.readouterr().out


def test_handcrafted_columns_that_win_alone_are_no_feature_of_the_run(output, tmp_path, capsys):
    sizes = np.random.default_rng(0).normal(size=ROWS)
    path = output(sign=np.where(sizes > 0, "more", "less").tolist(), size=sizes.tolist())
    told = told_of(path, tmp_path / "probe", capsys, "--label", "sign", "--with", "size")
    assert "No feature of the run did better on the validation rows than the hand-crafted columns alone: acc" in told


def test_figures_that_the_test_rows_do_not_define_are_told_as_such(output, tmp_path, capsys):
    sides = ["train"] * 400 + ["val"] * 100 + ["test"] * 100
    kinds = ["ham", "spam"] * 250 + ["ham"] * 100
    sizes = [*np.arange(500.0).tolist(), *[7.0] * 100]
    path = output(kind=kinds, size=sizes, split=sides)
    assert "AUC is undefined: every test row has the same label" in told_of(
        path, tmp_path / "kind", capsys, "--label", "kind"
    )
    told = told_of(path, tmp_path / "size", capsys, "--label", "size")
    assert "R² is undefined: every test row has the same label" in told
    assert "- (- to -)" in told


def test_values_that_no_model_comes_near_are_reported(output, tmp_path, capsys):
    sizes = [*np.arange(500.0).tolist(), *np.linspace(1e6, 1e6 + 1, 100).tolist()]
    path = output(size=sizes, split=["train"] * 400 + ["val"] * 100 + ["test"] * 100)
    told = told_of(path, tmp_path / "probe", capsys, "--label", "size")
    best = json.loads((tmp_path / "probe/probe.json").read_text())["results"][0]
    assert best["test"]["r2"]["high"] < -1
    assert f"{best['test']['r2']['value']:.3f}" in told


def test_stopped_probe_promises_nothing_that_the_same_command_would_not_do(output, tmp_path):
    argv = ["probe", output(), "--label", "label", "--model", "mlp", "--output", str(tmp_path / "probe")]
    command = [sys.executable, "-m", "varve", *argv, "--text", "none"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as ran:
        assert ran.stderr.readline().startswith("1 of 4 models")
        ran.send_signal(signal.SIGINT)
        told = ran.stderr.read()
    assert ran.returncode == 1
    assert told.endswith("varve probe: stopped. The same command begins anew\n")


@pytest.mark.parametrize("command", ["probe", "demo"])
@pytest.mark.parametrize(
    ("place", "told"), [("file/below", "can't be written: Not a directory"), ("s3://bucket/p", "address of a store")]
)
def test_output_that_cannot_be_written_is_refused_before_the_work(
    command, place, told, output, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    asked = [output(), "--label", "label"] if command == "probe" else []
    assert run_command([command, *asked, "--output", place]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "models:" not in error
    assert not (tmp_path / "s3:").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_disk_that_fills_while_a_report_is_written_is_named(output, tmp_path, capsys):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe/probe.json").symlink_to("/dev/full")
    argv = ["probe", output(), "--label", "label", "--features", "cls_01", "--text", "none"]
    assert run_command([*argv, "--output", str(tmp_path / "probe")]) == 1
    assert f"{tmp_path / 'probe'}: what was found can't be written: No space left" in capsys.readouterr().err


def test_words_are_a_baseline_and_twins_across_the_split_are_told(output):
    _, target = problem()
    texts = [f"{('red', 'green', 'blue')[label]} thing" for label in target]
    found = ask(output(text=texts), features=("cls_00",), text="text")
    words = next(result for result in found.results if result.name == "bag of words")
    assert words.judged.figures["accuracy"].value == 1
    assert any("have a text that stands in a training row too" in note for note in found.notes)


def test_texts_come_from_the_source_whatever_has_become_of_the_functions(tiny, tmp_path):
    inputs, target = problem()
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"text": [f"{'abc'[label]} thing" for label in target]}), tmp_path / "docs/0.parquet")
    (tmp_path / "code").mkdir()
    code = tmp_path / "code/my_lengths.py"
    code.write_text("def length(rows): return [1] * len(rows)")
    job = {
        "source": {"dataset": str(tmp_path / "docs"), "text": "text"},
        "model": {"name": tiny("bert")},
        "features": {"cls": {"pool": "cls"}, "length": {"python": "my_lengths:length", "type": "int32"}},
        "output": {"path": str(tmp_path / "run")},
    }
    plan = make_plan(Job.parse(job).in_folder(str(code.parent)), device="cpu")
    write_output(tmp_path / "run", {column("cls", WIDTH): inputs}, {"label": target.tolist()})
    (tmp_path / "run" / JOB_NAME).write_text(json.dumps(plan.to_json()))
    code.unlink()
    found = ask(str(tmp_path / "run"), text=None)
    assert not found.absent
    assert "bag of words" in {result.name for result in found.results}


def test_features_with_several_vectors_to_a_row_are_passed_over_or_refused(tmp_path):
    inputs, target = problem(rows=60)
    features = {
        column("cls", WIDTH, layer=3): inputs,
        column("many", WIDTH, pool="mean", form="windows"): inputs,
    }
    path = write_output(tmp_path / "run", features, {"label": target.tolist()})
    assert any("more than one vector to a row: many" in note for note in ask(path).notes)
    with pytest.raises(JobError, match="it holds windows"):
        ask(path, features=("many",))


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/", "memory.max"),  # a container
        ("0::/slurm/job_7/step_0", "slurm/job_7/memory.max"),
        ("4:memory:/job_7\n0::/", "memory/job_7/memory.limit_in_bytes"),
    ],
)
def test_memory_is_a_share_of_what_the_control_group_may_take(group, file, tmp_path):
    limit = tmp_path / "sys/fs/cgroup" / file
    for path, content in ((tmp_path / "proc/self/cgroup", group), (limit, str(1 << 30))):
        path.parent.mkdir(parents=True)
        path.write_text(content + "\n")
    assert default_bytes(tmp_path) == int(0.4 * (1 << 30))
    limit.write_text("max\n")
    assert default_bytes(tmp_path) > int(0.4 * (1 << 30))
