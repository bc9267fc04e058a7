"""Reported differences between a job and sentence-transformers."""

import json

import pytest

from varve.config.feature_shorthand import parse_features
from varve.encoder.checkpoint.sentence_transformers import differences
from varve.encoder.feature_plan import ModelShape, plan_features

SHAPE = ModelShape(num_layers=3, hidden_size=32, num_heads=4, num_labels=0, has_pooler=True)
POOLING = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": False, "include_prompt": True}


@pytest.fixture
def checkpoint(tmp_path):
    """The small files of a checkpoint with these modules after its Transformer, in the library's format."""

    def make(*names: str, pooling=(), prompts=None, max_seq_length=None) -> str:
        paths = {name: f"{place}_{name}" for place, name in enumerate(names, 1)}
        modules = [{"type": f"sentence_transformers.models.{name}", "path": path} for name, path in paths.items()]
        files = {
            "modules.json": [{"type": "sentence_transformers.models.Transformer", "path": ""}, *modules],
            "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": None},
            "sentence_bert_config.json": {"max_seq_length": max_seq_length, "do_lower_case": False},
            "1_Pooling/config.json": POOLING | dict(pooling),
        }
        (tmp_path / "1_Pooling").mkdir()
        for name, content in files.items():
            (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path)

    return make


def compare(folder: str, max_tokens: int | None = 128, **features: str) -> list[str]:
    definitions = parse_features(features or {"embedding": "mean"})
    return differences(folder, plan_features(definitions, SHAPE, dtype="float32"), max_tokens)


UNIT = "vectors of length 1 (no feature is normalized)"
LATER_MODULES = "Dense and LayerNorm applied to vectors (not by this job)"
CLS, MEAN = {"pooling_mode_cls_token": True}, {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("modules", "pooling", "features", "expected"),
    [
        (["Pooling"], MEAN, {"a": "mean"}, []),
        (["Pooling"], CLS, {"a": "mean"}, ["cls pooling (no feature has it)"]),
        (["Pooling"], {"pooling_mode": "lasttoken"}, {"a": "cls"}, ["last pooling (no feature has it)"]),
        (["Pooling"], CLS | MEAN, {"a": "cls", "b": "mean"}, ["mean and cls pooling (no feature has it)"]),
        (["Pooling"], CLS, {"a": "mean", "b": "cls"}, []),
        (["Pooling", "Normalize"], MEAN, {"a": "mean", "b": "cls+normalize"}, [UNIT]),
        (["Pooling", "Normalize"], CLS, {"a": "mean"}, ["cls pooling (no feature has it)", UNIT]),
        (["Pooling", "Normalize"], MEAN, {"a": "mean+normalize"}, []),
        (["Pooling", "Dense", "LayerNorm"], MEAN, {"a": "mean"}, [LATER_MODULES]),
        (["Pooling", "Dense"], CLS, {"a": "mean@1", "b": "tokens"}, []),  # no feature is comparable
    ],
)
def test_differences_in_vectors_are_reported(modules, pooling, features, expected, checkpoint):
    assert compare(checkpoint(*modules, pooling=pooling), **features) == expected


@pytest.mark.parametrize(
    ("prompts", "max_length", "max_tokens", "expected"),
    [
        ({"query": "query: ", "document": ""}, 128, 128, ["prompts before texts: query (this job adds none)"]),
        ({"query": "", "document": ""}, None, 128, []),
        (None, 256, 128, ["texts cut at 256 tokens (here 128)"]),
        (None, 256, None, []),
    ],
)
def test_differences_in_texts_are_reported(prompts, max_length, max_tokens, expected, checkpoint):
    folder = checkpoint("Pooling", pooling=MEAN, prompts=prompts, max_seq_length=max_length)
    assert compare(folder, max_tokens) == expected


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[{"path": null}]'])
def test_malformed_modules_yield_no_difference_and_no_error(content, tmp_path):
    (tmp_path / "modules.json").write_text(content)
    assert compare(str(tmp_path)) == []


def test_checkpoint_without_sentence_transformers_files_yields_no_difference(tiny):
    assert compare(tiny("bert")) == []
