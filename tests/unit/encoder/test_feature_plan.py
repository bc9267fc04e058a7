from dataclasses import replace

import pytest

from varve.config.feature import Feature
from varve.encoder.checkpoint.head import Dense, Head, Normalize, Pooling, Splade, TokenWeights
from varve.encoder.feature_columns import plan_features
from varve.encoder.feature_plan import ModelShape
from varve.errors import JobError

SHAPE = ModelShape(num_layers=12, hidden_size=64, num_heads=4, num_labels=3, has_pooler=True)


def make(dtype="float32", *, per_row="vector", heads=None, shape=SHAPE, **features):
    definitions = {name: Feature.model_validate(feature) for name, feature in features.items()}
    return plan_features(definitions, shape, dtype=dtype, heads=heads, per_row=per_row)


def test_several_layers_become_one_column_each_and_the_highest_decides_what_runs():
    feature_plan = make(cls={"pool": "cls", "layers": [0, 4, -5]})
    assert feature_plan.names() == ["cls_00", "cls_04", "cls_08"]
    assert feature_plan.top_layer == 8


def test_combined_layers_become_one_column():
    feature_plan = make(last4={"pool": "mean", "layers": [-4, -3, -2, -1], "combine": "concat"})
    assert [(c.name, c.width, c.layers) for c in feature_plan.columns] == [("last4", 256, (9, 10, 11, 12))]


def test_all_layers_of_attentions_start_at_one():
    assert make(a={"pool": "attentions", "layers": "all"}).attention_layers == frozenset(range(1, 13))


def test_int8_brings_scales_and_leaves_logits_alone():
    feature_plan = make("int8", e={"pool": "mean"}, s={"pool": "logits"})
    assert feature_plan.names() == ["e", "e_scale", "s"]
    assert [c.dtype for c in feature_plan.columns] == ["int8", "float32"]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"a": {"pool": "mean", "layers": 13}}, "layer 13 does not exist: the model has 12 layers"),
        ({"a": {"pool": "mean", "layers": -14}}, "layer -14 does not exist"),
        ({"a": {"pool": "attentions", "layers": 0}}, "expected 1 to 12"),
        ({"a": {"pool": "mean", "layers": [12, -1]}}, "layer twice"),
        ({"a": {"pool": "mean", "dimensions": 65}}, "65 is more than the 64"),
        ({"row": {"pool": "mean"}}, "named row"),
        ({"a": {"pool": "cls", "layers": [0, 1]}, "a_01": {"pool": "mean"}}, "named a_01"),
        ({"a": {"pool": "tokens"}, "b": {"pool": "tokens", "special_tokens": True}}, "special_tokens must be equal"),
    ],
)
def test_impossible_features_are_refused(features, message):
    with pytest.raises(JobError, match=message):
        make(**features)


def test_pooler_and_logits_need_their_weights():
    bare = ModelShape(num_layers=2, hidden_size=8, num_heads=2, num_labels=0, has_pooler=False)
    with pytest.raises(JobError, match="no pooler weights"):
        make(shape=bare, p={"pool": "pooler"})
    with pytest.raises(JobError, match="no classification head"):
        make(shape=bare, p={"pool": "logits"})


DENSE = Head(kind="dense", pooling=Pooling(("cls", "lasttoken"), include_prompt=True), row_steps=(Normalize(),))
SHORT = Head(kind="dense", pooling=Pooling(("mean",), include_prompt=False))
SPLADE = Head(kind="sparse", pooling=Splade("max"))
FIXED = Head(kind="sparse", pooling=TokenWeights("weights.safetensors", 300))
LATE = Head(kind="late", token_steps=(Dense("dense.safetensors", 64, 16, "identity", residual=False), Normalize()))
MASKED_LM = replace(SHAPE, vocab_size=500)


def test_head_decides_pools_width_and_names_of_its_columns():
    heads = {"d": DENSE, "s": SPLADE, "l": LATE}
    features = {"d": {"pool": "declared"}, "s": {"pool": "splade"}, "l": {"pool": "colbert_linear"}}
    plan = make(heads=heads, shape=MASKED_LM, dtype="int8", **features)
    assert plan.pooled == {("cls", 12), ("last", 12)}
    assert {column.name: (column.form, column.width, column.dtype) for column in plan.columns} == {
        "d": ("vector", 128, "int8"), "s": ("sparse", 500, "float32"), "l": ("late", 16, "int8"),
    }  # fmt: skip
    names = ["d", "d_scale", "s_ids", "s_weights", "l", "l_scale", "l_input_ids", "l_offsets"]
    assert plan.names() == names
    assert plan.token_widths(64) == {"l": 16}


def test_pooling_without_the_prompt_is_another_pooling():
    plan = make(heads={"d": SHORT}, d={"pool": "declared"}, e={"pool": "mean"})
    assert plan.pooled == {("mean_of_text", 12), ("mean", 12)}


def test_fixed_weights_of_tokens_need_no_layer():
    plan = make(heads={"s": FIXED}, s={"pool": "declared"})
    assert plan.top_layer == 0
    assert not plan.needs_model
    assert plan.columns[0].width == 300
    assert make(heads={"s": FIXED}, s={"pool": "declared"}, e={"pool": "mean"}).needs_model


@pytest.mark.parametrize(
    ("feature", "head", "message"),
    [
        ({"pool": "splade"}, SPLADE, "no masked-LM head"),
        ({"pool": "declared", "normalize": True}, FIXED, "takes no normalize"),
        ({"pool": "declared", "dimensions": 129}, DENSE, "more than the 128 dimensions"),
    ],
)
def test_feature_that_does_not_fit_its_head_is_refused(feature, head, message):
    with pytest.raises(JobError, match=message):
        make(heads={"e": head}, e=feature)


def test_masked_lm_head_beside_the_pooler_is_refused():
    with pytest.raises(JobError, match="pool pooler and splade need two different models"):
        make(heads={"s": SPLADE}, shape=MASKED_LM, s={"pool": "splade"}, p={"pool": "pooler"})


@pytest.mark.parametrize(("feature", "head"), [({"pool": "cls"}, None), ({"pool": "declared"}, DENSE)])
def test_chunks_of_a_pooling_of_single_tokens_are_refused(feature, head):
    with pytest.raises(JobError, match="by mean or max, not by cls"):
        make(per_row="chunks", heads={"e": head} if head else None, e=feature)


def test_chunks_have_a_column_of_spans():
    plan = make(per_row="chunks", heads={"e": SHORT}, e={"pool": "declared"}, m={"pool": "max", "layers": 3})
    assert plan.names() == ["e", "m", "chunks"]
