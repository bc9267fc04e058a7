"""The remark on the vector that a checkpoint declares and a job does not have."""

import json

import pytest

from varve.config.feature_shorthand import parse_features
from varve.config.model import Model
from varve.encoder.checkpoint.defaults import make_feature_plan
from varve.encoder.checkpoint.inspection import inspect_checkpoint
from varve.planning.declared_note import declared_note, prompt_note


@pytest.fixture
def note(minilm, tmp_path):
    """The remark on a job with MiniLM, which declares the mean of 256 tokens with length 1."""

    def make(*, max_tokens=256, settings=None, about=None, prompt=None, role="none", **features: str) -> str | None:
        for file in ("config.json", "model.safetensors", "modules.json", "1_Pooling", "sentence_bert_config.json"):
            (tmp_path / file).symlink_to(f"{minilm}/{file}")
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            (tmp_path / file).symlink_to(f"{minilm}/{file}")
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings or {}))
        model = Model(name=str(tmp_path), prompt=prompt, role=role)
        checkpoint = inspect_checkpoint(model.name, role=role, prompt=prompt)
        plan = make_feature_plan(model, parse_features(features), checkpoint, "float32")
        return about(model, plan, checkpoint) if about else declared_note(model, plan, checkpoint, max_tokens)

    return make


@pytest.mark.parametrize(
    ("features", "max_tokens"),
    [
        ({"e": "declared"}, 128),
        ({"e": "mean+normalize"}, 256),
        ({"e": "mean+normalize", "c": "cls"}, None),  # windows
        ({"c": "cls@2", "t": "tokens"}, 128),  # nothing is comparable
    ],
)
def test_job_with_the_declared_vector_has_no_remark(features, max_tokens, note):
    assert note(max_tokens=max_tokens, **features) is None


@pytest.mark.parametrize(
    ("features", "max_tokens"), [({"e": "mean"}, 256), ({"e": "cls+normalize"}, 256), ({"e": "mean+normalize"}, 128)]
)
def test_job_with_another_vector_names_the_declared_one(features, max_tokens, note):
    remark = note(max_tokens=max_tokens, **features)
    assert remark is not None
    assert "mean → length 1; 256 tokens; compared by cosine" in remark


@pytest.mark.parametrize(
    ("prompts", "job", "expected"),
    [
        ({"query": "query: ", "passage": "passage: "}, {"role": "document"}, "model.prompt: 'passage: ' adds it"),
        ({"query": "query: ", "corpus": "text: "}, {"role": "document"}, "model.prompt: 'text: ' adds it"),
        ({"query": "query: ", "passage": "passage: "}, {"role": "document", "prompt": "passage: "}, None),
        ({"query": "query: ", "passage": "passage: "}, {"role": "query"}, None),
        ({"query": "query: ", "document": "doc: ", "passage": "passage: "}, {"role": "document"}, None),
        ({"query": "query: ", "passage": "passage: "}, {}, None),
    ],
)
def test_prompt_for_passages_is_named_where_documents_have_none(prompts, job, expected, note):
    remark = note(settings={"prompts": prompts}, about=prompt_note, e="declared", **job)
    assert remark is None if expected is None else expected in (remark or "")


def test_prompt_that_the_job_lacks_is_in_the_remark_without_control_characters(note):
    settings = {"prompts": {"q": "\x1b[31mquery: "}, "default_prompt_name": "q"}
    remark = note(settings=settings, e="mean+normalize")
    assert remark is not None
    assert "query: " in remark
    assert "\x1b" not in remark
