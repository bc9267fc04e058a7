"""`varve probe` and `varve predict` as a user runs them: real texts, the real MiniLM, a real browser."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from tests.docstrings import docstrings
from tests.outputs import column, write_output
from varve import Encoder, Probe
from varve.cli.main import run_command

PACKAGES = ("hypothesis", "moto", "networkx", "numpy", "pandas", "polars", "pydantic", "sklearn", "sympy", "torch")
PER_PACKAGE = 50
CHROMIUM = shutil.which("chromium")
ROWS, WIDTH = 400, 8


@pytest.fixture(scope="session")
def packages() -> dict[str, list[str]]:
    """Package → docstrings, for ten installed packages."""
    return {name: docstrings(name, PER_PACKAGE) for name in PACKAGES}


@pytest.fixture
def labelled(packages, tmp_path):
    """A folder of docstrings with their package, shuffled."""
    rows = [(package, text, len(text.split())) for package, texts in packages.items() for text in texts]
    order = np.random.default_rng(0).permutation(len(rows))
    package, text, num_words = zip(*(rows[at] for at in order), strict=True)
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"package": package, "text": text, "n_words": num_words}), tmp_path / "docs/0.parquet")
    return tmp_path / "docs"


def run_json(capsys, *argv) -> dict:
    capsys.readouterr()
    code = run_command([*map(str, argv), "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def test_packages_are_predicted_and_a_second_probe_gives_the_same_metrics(labelled, job, run, minilm, tmp_path, capsys):
    path = run(
        job(
            labelled,
            keep=("package", "n_words"),
            features={"cls": {"pool": "cls", "layers": "all"}, "mean": {"pool": "mean", "layers": [3, 6]}},
            model={"name": minilm, "max_tokens": 48},
        )
    ).path
    argv = ("probe", path, "--label", "package", "--with", "n_words")
    content = run_json(capsys, *argv, "--output", tmp_path / "probe")
    accuracy = {result["name"]: result["test"]["accuracy"] for result in content["results"]}
    assert accuracy[content["best"]]["low"] > max(
        accuracy[name]["high"] for name in ("majority class", "hand-crafted alone")
    )
    assert accuracy["cls_00"]["high"] < accuracy["cls_06"]["low"]  # before any attention CLS is the same for all texts
    assert accuracy["bag of words"]["value"] > 0.5  # the texts are read from the source: the run did not keep them
    assert not content["absent"]
    again = run_json(capsys, *argv, "--features", "mean_06", "--output", tmp_path / "again")
    first, second = ({one["name"]: one["test"] for one in answer["results"]} for answer in (content, again))
    shared = first.keys() & second.keys()
    assert shared == {"mean_06", "hand-crafted alone", "majority class", "bag of words"}
    assert all(first[name] == second[name] for name in shared)
    assert abs(accuracy["mean_06"]["value"] - scikit_learn(path, "mean_06")) <= 0.005
    page = (tmp_path / "probe/report.html").read_text()
    assert page.count('<svg xmlns="http://www.w3.org/2000/svg" class="plot"') >= 5
    probe = Probe.load(tmp_path / "probe")
    texts = ["Sort a list in place.", "Return the mean of the values of a group."]
    encode = Encoder(minilm, {"cls": "cls@all", "mean": "mean@3,6"}, device="cpu")
    probabilities = probe({**encode(texts), "n_words": [5, 9]})
    assert probabilities.shape == (2, len(PACKAGES))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def scikit_learn(path: str, feature: str) -> float:
    """Test accuracy of plain scikit-learn on the same arrays, with C chosen on the validation rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from varve.output.run_output import Output
    from varve.probe.data.dataset import Question, load_rows
    from varve.probe.models.linear import CS

    rows = load_rows(Output.open(path), Question(label="package", handcrafted=("n_words",)))
    table = pa.concat_tables([pq.read_table(part) for part in sorted(Path(path, "data").glob("*.parquet"))])
    vectors = np.hstack([np.stack(table[feature].to_numpy()), table["n_words"].to_numpy()[:, None]])
    labels = np.array(table["package"].to_pylist())
    train, validation, test = (rows.split == which for which in range(3))
    best = (np.inf, 0.0)
    for c in CS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000, tol=1e-6)).fit(
            vectors[train], labels[train]
        )
        own = model.predict_proba(vectors[validation])[
            np.arange(validation.sum()), np.searchsorted(model.classes_, labels[validation])
        ]
        best = min(best, (-np.log(own).mean(), -(model.predict(vectors[test]) == labels[test]).mean()))
    return -best[1]


@pytest.fixture
def labelled_run(tmp_path):
    """(name, changes) → a run of which layer 1 predicts the label, with HTML as texts and one error row."""

    def make(name="run", *, texts=None, seed=0, **changes) -> str:
        draw = np.random.default_rng(seed)
        target = draw.integers(3, size=ROWS)
        centres = np.random.default_rng(9).normal(size=(3, WIDTH))
        good = (centres[target] + 0.4 * draw.normal(size=(ROWS, WIDTH))).astype(np.float32)
        bad = draw.normal(size=(ROWS, WIDTH)).astype(np.float32)
        features = {column("cls_00", WIDTH, layer=0): bad, column("cls_01", WIDTH, layer=1): good}
        kept = {
            "kind": [("ham", "<b>spam</b>", "eggs & co")[label] for label in target],
            "size": (target + draw.normal(size=ROWS)).tolist(),
            "text": texts or [f"</script><script>alert({row})</script>" for row in range(ROWS)],
        }
        return write_output(changes.pop("path", tmp_path / name), features, kept, errors=(7,), **changes)

    return make


def probe_one_layer(path: str, output: Path, capsys) -> None:
    run_json(capsys, "probe", path, "--label", "kind", "--features", "cls_01", "--text", "none", "--output", output)


def test_predictions_have_one_file_per_part_and_are_those_of_onnx(labelled_run, tmp_path, capsys):
    import onnxruntime

    argv = ("--label", "kind", "--with", "size", "--features", "cls_01", "--text", "none")
    run_json(capsys, "probe", labelled_run(), *argv, "--output", tmp_path / "probe")
    other = labelled_run("other", seed=4)
    done = run_json(capsys, "predict", tmp_path / "probe", other, "--keep", "kind")
    assert (done["num_rows"], done["num_errors"], done["made_before"]) == (ROWS, 1, 0)
    assert sum(done["counts"].values()) == ROWS - 1
    table = ds.dataset(sorted(Path(other, "predictions/kind").glob("*.parquet"))).to_table()
    assert table["row"].to_pylist() == list(range(ROWS))
    assert table["prediction"][7].as_py() is table["probabilities"][7].as_py() is None
    good = table.filter(table["error"].is_null())
    right = np.mean(
        [one == two for one, two in zip(good["prediction"].to_pylist(), good["kind"].to_pylist(), strict=True)]
    )
    assert right > 0.9
    assert run_json(capsys, "predict", tmp_path / "probe", other, "--keep", "kind")["made_before"] == 2
    source = ds.dataset(sorted(Path(other, "data").glob("*.parquet"))).to_table().filter(table["error"].is_null())
    probe = Probe.load(tmp_path / "probe/model")
    from varve.probe.data.handcrafted import encode

    vectors = np.stack(source["cls_01"].to_numpy())
    session = onnxruntime.InferenceSession(tmp_path / "probe/model/model.onnx")
    (found,) = session.run(None, {"cls_01": vectors, "handcrafted": encode(probe.handcrafted, source)})
    assert np.allclose(found, np.stack(good["probabilities"].to_numpy()), atol=1e-5)
    assert np.allclose(found, probe({"cls_01": vectors, "size": source["size"]}), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"weights_sha256": "other"}, "weights_sha256: w"),
        ({"revision": "abc"}, "revision: None → abc"),
        ({"tokenizer_sha256": "other"}, "tokenizer_sha256"),
    ],
)
def test_predict_rejects_a_run_of_another_model(changes, difference, labelled_run, tmp_path, capsys):
    probe_one_layer(labelled_run(), tmp_path / "p", capsys)
    assert run_command(["predict", str(tmp_path / "p"), labelled_run("other", **changes)]) == 2
    assert difference in capsys.readouterr().err
    assert not (tmp_path / "other/predictions").exists()


def test_predict_rejects_another_layer_or_pooling_with_the_same_name(labelled_run, tmp_path, capsys):
    probe_one_layer(labelled_run(), tmp_path / "p", capsys)
    vectors = np.zeros((30, WIDTH), np.float32)
    other = write_output(
        tmp_path / "o", {column("cls_01", WIDTH, layer=2, pool="mean"): vectors}, {"x": list(range(30))}
    )
    assert run_command(["predict", str(tmp_path / "p"), other]) == 2
    error = capsys.readouterr().err
    assert "cls_01, pool: cls → mean" in error
    assert "cls_01, layers: 1 → 2" in error


def test_onnx_of_mixed_layers_and_networks_gives_the_same_values(tmp_path):
    import onnxruntime

    from varve.probe.models.head import Head, Shape

    torch.manual_seed(0)
    shape = Shape(vector_width=12, mixed_layers=3, handcrafted_width=2, hidden=(5,), outputs=1)
    head = Head(shape).eval()
    with torch.no_grad():
        head.mix.copy_(torch.tensor([0.3, -1.0, 2.0]))
        head.mean.normal_()
        head.scale.uniform_(1, 2)
    features = tuple(column(f"cls_{layer:02d}", 4, layer=layer) for layer in range(3))
    from varve.probe.data.handcrafted import HandCrafted

    columns = tuple(HandCrafted(name=name, kind="number") for name in "ab")
    probe = Probe(head, features, columns, (), "y", {}, {})
    draw = np.random.default_rng(0)
    given = {feature.name: draw.normal(size=(6, 4)).astype(np.float32) for feature in features}
    hand = draw.normal(size=(6, 2)).astype(np.float32)
    session = onnxruntime.InferenceSession(probe.to_onnx())
    (found,) = session.run(None, {**given, "handcrafted": hand})
    assert np.allclose(found[:, 0], probe({**given, "a": hand[:, 0], "b": hand[:, 1]}), atol=1e-5)


def test_probe_of_an_object_store_reads_only_the_columns_it_needs(labelled_run, container, tmp_path, capsys):
    path = labelled_run(path=f"{container('radosgw')}/run")
    content = run_json(capsys, "probe", path, "--label", "kind", "--text", "text", "--output", tmp_path / "p")
    assert content["best"] != "cls_00"
    assert run_json(capsys, "predict", tmp_path / "p", path)["path"] == f"{path}/predictions/kind"


def test_probe_on_ray_gives_the_metrics_of_a_local_probe(labelled_run, tmp_path, capsys, monkeypatch):
    argv = ("probe", labelled_run(), "--label", "kind", "--text", "none", "--model", "mlp")
    monkeypatch.setenv("RAY_ADDRESS", "")
    local = run_json(capsys, *argv, "--output", tmp_path / "local")
    from varve.cluster.connection import start_ray
    from varve.config.compute import Compute

    start_ray(Compute())
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    on_ray = run_json(capsys, *argv, "--output", tmp_path / "on_ray")
    for one, other in zip(local["results"], on_ray["results"], strict=True):
        assert one["test"]["accuracy"]["value"] == pytest.approx(other["test"]["accuracy"]["value"], abs=0.02), one[
            "name"
        ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{nothing}", "--label", "kind"], "holds no output of Varve"),
        (["{run}", "--label", "color"], "no column 'color': besides features the run has kind, size, text"),
        (["{run}", "--label", "text"], "it holds text"),
        (["{run}", "--label", "kind", "--memory", "lots"], "--memory: 'lots' is not allowed"),
        (["{run}", "--label", "kind", "--output", "{taken}"], "exists and holds no probe"),
    ],
)
def test_wrong_command_exits_with_2_and_writes_nothing(argv, message, labelled_run, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").write_text("mine")
    places = {"nothing": tmp_path / "nothing", "run": labelled_run(), "taken": tmp_path / "taken"}
    argv = [word.format(**places) for word in argv]
    assert run_command(["probe", *argv, *([] if "--output" in argv else ["--output", str(tmp_path / "p")])]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "p").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: infra/servers.sh installs it")
def test_page_works_in_a_browser_without_a_network(labelled_run, tmp_path, capsys):
    from playwright.sync_api import sync_playwright

    run_json(capsys, "probe", labelled_run(), "--label", "kind", "--text", "text", "--output", tmp_path / "p")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(offline=True, color_scheme="dark", viewport={"width": 390, "height": 800})
        page = context.new_page()
        messages, requested = [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requested.append(request.url))
        page.goto((tmp_path / "p/report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        slider, first_dot = page.locator("#layer"), page.locator("#map path").first
        before = slider.input_value(), page.locator("#shown").inner_text(), first_dot.get_attribute("transform")
        slider.press("ArrowLeft" if before[0] == "1" else "ArrowRight")
        after = slider.input_value(), page.locator("#shown").inner_text(), first_dot.get_attribute("transform")
        assert {before[1], after[1]} == {"Layer 0", "Layer 1"}
        assert before[2] != after[2]
        assert page.locator("#map").get_attribute("data-layer") == f"cls_0{after[0]}"
        box = slider.bounding_box()
        slider.click(position={"x": box["width"] - 4 if after[0] == "0" else 4, "y": box["height"] / 2})
        assert page.locator("#shown").inner_text() == before[1]
        assert page.locator("#plot-accuracy").is_visible()
        page.get_by_text("Log loss", exact=True).nth(1).click()
        assert page.locator("#plot-log_loss").is_visible()
        assert not page.locator("#plot-accuracy").is_visible()
        page.get_by_role("button", name="<b>spam</b>").click()
        faint = page.locator("#map path[opacity='0.07']").count()
        assert 0 < faint < page.locator("#map path").count()
        first_dot.dispatch_event("pointerenter")
        assert "</script><script>alert(" in page.locator("#point").inner_text()
        assert page.locator("#map path").count() == pytest.approx(60, abs=3)
        browser.close()
    assert messages == []
    assert all(url.startswith(("file:", "data:")) for url in requested)
