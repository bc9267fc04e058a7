from dataclasses import replace

import pyarrow as pa
import pytest

from tests.outputs import column, write_output
from tests.probes import WIDTH, problem
from varve.encoder.feature_plan import FeaturePlan
from varve.errors import JobError
from varve.output.run_output import Output
from varve.output.schema import output_schema
from varve.probe.data.feature_sets import choose_feature_sets


@pytest.fixture
def run(tmp_path):
    """(columns) → a run of 60 rows with these feature columns."""

    def make(*columns) -> Output:
        inputs, target = problem(rows=60)
        return Output.open(write_output(tmp_path / "run", dict.fromkeys(columns, inputs), {"label": target.tolist()}))

    return make


def test_features_of_one_layer_each_are_not_combined_as_layers_of_one_feature(run):
    output = run(
        column("sent_cls", WIDTH, layer=6),
        column("sent_mean", WIDTH, layer=6, pool="mean"),
        column("word_05", WIDTH, layer=5),
        column("word_06", WIDTH, layer=6),
    )
    chosen, _ = choose_feature_sets(output, ("all",), with_handcrafted=False)
    combined = {"word: all layers side by side": "word", "word: learned mix of layers": "word"}
    assert {inputs.name: inputs.family for inputs in chosen} == {
        "sent_cls": "sent_cls", "sent_mean": "sent_mean", "word_05": "word", "word_06": "word", **combined
    }  # fmt: skip
    layers, _ = choose_feature_sets(output, ("word",), with_handcrafted=False)
    assert [inputs.name for inputs in layers[:2]] == ["word_05", "word_06"]
    with pytest.raises(JobError, match="no feature 'sent'"):
        choose_feature_sets(output, ("sent",), with_handcrafted=False)


def test_features_with_several_vectors_per_row_are_left_out_or_rejected(run):
    output = run(column("cls", WIDTH, layer=3), column("many", WIDTH, pool="mean", form="windows"))
    chosen, notes = choose_feature_sets(output, ("all",), with_handcrafted=False)
    assert [inputs.name for inputs in chosen] == ["cls"]
    assert any("do not hold one dense vector per row: many" in note for note in notes)
    with pytest.raises(JobError, match="--features many: it holds windows"):
        choose_feature_sets(output, ("many",), with_handcrafted=False)


@pytest.mark.parametrize(
    ("form", "holds"),
    [("sparse", "sparse vectors"), ("late", "one vector per token"), ("clusters", "one vector per clu")],
)
def test_sparse_and_late_features_are_rejected_and_are_not_kept_columns(run, form, holds):
    columns = (column("cls", WIDTH), column("other", WIDTH, pool="declared", form=form))
    plan = FeaturePlan(columns, 1, 1, special_tokens=False)
    schema = output_schema(plan, pa.schema([("label", pa.int64())]), pairs=False)
    output = replace(run(columns[0]), schema=schema)
    assert output.kept_columns == ["label"]
    chosen, notes = choose_feature_sets(output, ("all",), with_handcrafted=False)
    assert [inputs.name for inputs in chosen] == ["cls"]
    assert any("one dense vector per row: other" in note for note in notes)
    with pytest.raises(JobError, match=f"--features other: it holds {holds}"):
        choose_feature_sets(output, ("other",), with_handcrafted=False)
