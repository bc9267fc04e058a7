import pytest

from varve.config.feature import Feature
from varve.encoder.feature_plan import ModelShape, plan_features
from varve.errors import JobError

SHAPE = ModelShape(num_layers=12, hidden_size=64, num_heads=4, num_labels=3, has_pooler=True)


def make(dtype="float32", *, per_window=False, shape=SHAPE, **features):
    definitions = {name: Feature.model_validate(feature) for name, feature in features.items()}
    return plan_features(definitions, shape, dtype=dtype, per_window=per_window)


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
