import copy
import json

import pytest

from varve.cli.main import run_command
from varve.config.base import flatten
from varve.config.feature import Computed, Feature
from varve.config.feature_shorthand import parse_feature, parse_features
from varve.config.job import Job, json_schema
from varve.errors import JobError

BASE = {
    "source": {"dataset": "docs", "text": "body"},
    "model": {"name": "bert"},
    "output": {"path": "out"},
}


def changed(path: str, value) -> dict:
    content = copy.deepcopy(BASE)
    *parents, key = path.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
    section[key] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "fragments"),
    [
        ("model.max_token", 3, ["model.max_token", "unknown key", "max_tokens", "Did you mean max_tokens?"]),
        ("compute.tokenizers", 4, ["compute.tokenizers: unknown key", "Remove it: each replica tokenizes its own"]),
        ("sauce", 1, ["sauce: unknown key", "source, model, features, output, compute"]),
        ("model.max_tokens", "abc", ["model.max_tokens", '"abc"', "'auto'", "integer"]),
        ("model.max_tokens", 1, ["model.max_tokens", "1", "greater than or equal to 3"]),
        ("features.a", {"pool": "avg"}, ["features.a.pool", '"avg"', "'mean'", "'logits'"]),
        ("features.a", {"pool": "mean", "layers": [1, "x"]}, ["features.a.layers.1", '"x"', "integer"]),
        ("features.a", {"pool": "pooler", "layers": 3}, ["features.a", "last layer"]),
        ("features.a", {"pool": "mean", "special_tokens": True}, ["features.a", "special_tokens"]),
        ("features.a", {"pool": "mean", "normalize": 1}, ["features.a.normalize", "1", "boolean"]),
        ("features.a b", {"pool": "mean"}, ["features.a b", "letters"]),
        ("features", {}, ["features is empty"]),
        ("features.a", {}, ["features.a.pool: is required"]),
        ("features.a", {"python": "m:f"}, ["features.a.type: is required"]),
        ("features.a", {"python": "m:f", "type": "float8"}, ["features.a.type", '"float8"', "float32[8]"]),
        ("features.a", {"python": "m:f", "type": "float32[0]"}, ["features.a.type", '"float32[0]"']),
        ("features.a", {"python": "m.f", "type": "bool"}, ["features.a.python", '"m.f"', "module:function"]),
        ("features.a", {"python": 3, "type": "bool"}, ["features.a.python: 3", "string"]),
        ("features.a", {"python": "m:f", "typ": "bool"}, ["features.a.typ: unknown key", "python, type", "mean type?"]),
        ("features.a", {"python": "m:f", "type": "bool", "pool": "cls"}, ["features.a.pool: unknown key"]),
        ("features", {"a": {"python": "m:f", "type": "bool"}}, ["features", "Python functions", "with pool"]),
        ("model", None, ["model", "null"]),
        ("model.long_text", {"window": 16, "stride": 8}, ["stride 8", "window 16"]),
        ("model.long_text", {"window": 16, "strid": 8}, ["model.long_text.strid", "unknown key", "stride"]),
        ("source.text", 3, ["source.text", "3"]),
        ("source.text", ["a", "a"], ["source.text", "'a' twice", "once"]),
        ("source.keep", ["id", "url", "id"], ["source.keep", "'id' twice", "once"]),
        ("source.split", "train[:10%]", ["source.split", "'train[:10%]'", "part of a split"]),
        ("output.dtype", "f16", ["output.dtype", '"f16"', "'float16'"]),
        ("output.path", "memory://here", ["output.path", "memory://here is not a folder or an address of a store"]),
        ("output.path", "hf://datasets/me/docs", ["output.path", "hf upload me/docs FOLDER . --repo-type dataset"]),
        ("output.path", "http://host/there", ["output.path", "http://host/there is not a folder"]),
        ("output.max_errors", -1, ["output.max_errors", "-1"]),
        ("output.max_errors", "1", ["output.max_errors", "'1'", "a share such as 1%"]),
        ("output.max_errors", "200%", ["output.max_errors", "'200%'", "a share such as 1%"]),
        ("output.max_errors", "-1%", ["output.max_errors", "'-1%'", "a share such as 1%"]),
        ("output.path", "", ["output.path", '""', "is empty"]),
        ("output.path", " \n", ["output.path", "is empty"]),
        ("output.path", "a\0b", ["output.path", "NUL"]),
        ("model.name", "", ["model.name", "is empty"]),
        ("source.dataset", " ", ["source.dataset", "is empty"]),
        ("source.text", "", ["source.text", "is empty"]),
        ("source.text", ["a", ""], ["source.text.1", "is empty"]),
        ("source.keep", [""], ["source.keep.0", "is empty"]),
        ("source.data_files", "", ["source.data_files", "is empty"]),
        ("source.data_files", ["a", ""], ["source.data_files.1", "is empty"]),
        ("source.split", "", ["source.split", "is empty"]),
        ("source.options", {"path": "pandas"}, ["source.options", "'path'", "set source.dataset"]),
        ("source.options", {"builder_name": "pandas"}, ["source.options", "'builder_name'"]),
        ("source.options", {"data_files": "x"}, ["source.options", "set source.data_files"]),
        ("source.options", {"name": "x"}, ["source.options", "set source.name"]),
        ("source.options", {"split": "x"}, ["source.options", "set source.split"]),
        ("source.options", {"revision": "x"}, ["source.options", "set source.revision"]),
        ("source.options", {"storage_options": {}}, ["source.options", "set source.storage_options"]),
        ("source.options", {"streaming": False}, ["source.options", "'streaming'", "remove it"]),
        ("source.options", {"trust_remote_code": True}, ["source.options", "'trust_remote_code'"]),
        ("compute.gpus", float("nan"), ["compute.gpus", "NaN"]),
        ("model.trust_remote_code", "yes", ["model.trust_remote_code", '"yes"', "boolean"]),
    ],
)
def test_error_names_key_value_and_what_is_allowed(path, value, fragments):
    with pytest.raises(JobError) as error:
        Job.parse(changed(path, value), where="job.yaml")
    for fragment in ("job.yaml", *fragments):
        assert fragment in str(error.value)


@pytest.mark.parametrize(
    ("max_errors", "num_rows", "limit"),
    [
        ("1%", 3000, 30),
        ("1%", 10, 10),
        ("0.5%", 10_000, 50),
        ("100%", 7000, 7000),
        (3, 1_000_000, 3),
        (0, 5, 0),
        (None, 5, None),
    ],
)
def test_limit_of_failed_rows_is_a_number_a_share_or_none(max_errors, num_rows, limit):
    assert Job.parse(changed("output.max_errors", max_errors)).output.error_limit(num_rows) == limit


def test_one_percent_of_the_rows_may_fail_by_default():
    assert Job.parse(BASE).output.error_limit(3000) == 30


def test_windows_of_sentence_pairs_are_refused():
    content = changed("model.long_text", {"window": 64, "stride": 8})
    content["source"]["text"] = ["a", "b"]
    with pytest.raises(JobError, match="one text, not a pair"):
        Job.parse(content)


@pytest.mark.parametrize("flag", ["--output", "--model", "--dataset", "--text", "--split", "--keep", "--data-files"])
def test_empty_flag_is_refused(flag, capsys):
    """As an unset variable gives: `--output "$OUT"`."""
    flags = {"--dataset": "d", "--text": "t", "--model": "m", "--output": "o", flag: ""}
    assert run_command(["embed", "--dry-run", *(part for pair in flags.items() for part in pair)]) == 2
    assert "is empty" in capsys.readouterr().err


def test_error_names_all_missing_sections():
    with pytest.raises(JobError) as error:
        Job.parse({})
    assert all(f"{section}: is required" in str(error.value) for section in ("source", "model", "output"))


def test_identity_leaves_out_what_does_not_change_bytes():
    same = [
        changed("output.path", "elsewhere"),
        changed("compute.replicas", 7),
        changed("output.max_errors", 3),
    ]
    other = [changed("output.dtype", "float16"), changed("model.max_tokens", 64), changed("source.keep", ["id"])]
    identity = Job.parse(BASE).identity()
    assert all(Job.parse(content).identity() == identity for content in same)
    assert all(Job.parse(content).identity() != identity for content in other)


def test_job_survives_its_own_json():
    job = Job.parse(changed("features.a", {"pool": "cls", "layers": [0, -1]}))
    assert Job.parse(json.loads(json.dumps(job.model_dump(mode="json")))) == job


@pytest.mark.parametrize("text", ["", "key: [", "- a list", "just text"])
def test_error_names_a_file_that_is_not_a_job(text, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(JobError, match=r"job\.yaml"):
        Job.load(str(path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("source: é".encode("latin-1"), r"job\.yaml: is not UTF-8: byte 8 is 0xe9\. Save it as UTF-8"),
        ("source: é".encode("utf-16"), r"job\.yaml: is not UTF-8: byte 0 is 0xff"),
        (b"source: {split: 2024-02-30}", r"job\.yaml: a value cannot be read: day is out of range.* in quotes"),
        (b"source: !!int docs", r"job\.yaml: a value cannot be read: .*'docs'"),
        (b"source: &source {options: *source}", r"is not YAML: the alias source is within its own anchor \(line 1"),
        (b"source: {}\nmodel: [", r"job\.yaml: is not YAML: .* \(line 2, column 9\)"),
        (b"features:\n  a: {}\n  a: {}", r"is not YAML: the key a is there twice \(line 3, column 3\)"),
    ],
)
def test_error_names_the_position_in_a_file_that_is_not_yaml(content, expected, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(JobError, match=expected):
        Job.load(str(path))


def test_own_keys_override_merged_keys(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "source: {dataset: docs, text: body}\nmodel: {name: a}\noutput: {path: out}\n"
        "features:\n  a: &a {pool: mean, layers: 1}\n  b: &b {<<: *a, layers: 2}\n  c: {<<: *b, pool: max}\n"
    )
    features = Job.load(str(path)).pooled
    assert [(feature.pool, feature.layers) for feature in features.values()] == [("mean", 1), ("mean", 2), ("max", 2)]


def test_error_names_a_missing_file():
    with pytest.raises(JobError, match=r"nowhere\.yaml: "):
        Job.load("nowhere.yaml")


def test_settings_replace_values_of_the_file_with_their_types(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(BASE))
    job = Job.load(str(path), ["model.max_tokens=64", "features.cls={pool: cls, layers: [0, 1]}", "output.path=there"])
    assert job.model.max_tokens == 64
    assert job.features["cls"] == Feature(pool="cls", layers=(0, 1))
    assert job.output.path == "there"


@pytest.mark.parametrize(
    "setting", ["model.max_tokens", "=3", "output.path.deeper=1", "model.name=[1", "output.path=2024-02-30"]
)
def test_setting_of_the_wrong_form_is_refused(setting, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(BASE))
    with pytest.raises(JobError, match="--set"):
        Job.load(str(path), [setting])


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("e=mean", {"pool": "mean"}),
        ("e=mean@-1+normalize", {"pool": "mean", "layers": -1, "normalize": True}),
        ("e=cls@0,4,-1+concat", {"pool": "cls", "layers": [0, 4, -1], "combine": "concat"}),
        ("e=cls@all", {"pool": "cls", "layers": "all"}),
        ("e=mean+dimensions=64+normalize", {"pool": "mean", "dimensions": 64, "normalize": True}),
        ("e=tokens+special_tokens", {"pool": "tokens", "special_tokens": True}),
    ],
)
def test_short_form_of_a_feature(text, feature):
    assert parse_feature(text) == ("e", feature)
    Feature.model_validate(feature)


@pytest.mark.parametrize("text", ["e", "=mean", "e=", "e=mean@x", "e=mean+fast", "e=mean+dimensions=x"])
def test_wrong_short_form_is_refused(text):
    with pytest.raises(JobError, match=r"NAME=POOL\[@LAYERS\]"):
        parse_feature(text)


def test_job_knows_its_folder_and_equals_the_same_job_from_another_folder(tmp_path):
    content = changed("features.a", {"python": "m.n:f", "type": "float32[8]"})
    content["features"]["e"] = {"pool": "mean"}
    (tmp_path / "job.yaml").write_text(json.dumps(content))
    job = Job.load(str(tmp_path / "job.yaml"))
    assert job.folder == str(tmp_path)
    assert job == Job.parse(content)
    assert (job.computed["a"].value_type, job.computed["a"].length) == ("float32", 8)
    assert list(job.pooled) == ["e"]
    assert Job.parse(json.loads(json.dumps(job.model_dump(mode="json")))) == job


def test_python_function_is_refused_outside_of_jobs():
    with pytest.raises(JobError, match=r"features\.a: .* m:f"):
        parse_features({"a": Computed(python="m:f", type="bool")})


def test_schema_of_a_feature_is_one_of_two_kinds():
    (features,) = json_schema()["properties"]["features"]["anyOf"][0]["patternProperties"].values()
    assert {kind["$ref"].rpartition("/")[2] for kind in features["oneOf"]} == {"Feature", "Computed"}


def test_schema_describes_every_key():
    schema = json_schema()
    assert set(schema["properties"]) == set(Job.model_fields)
    assert schema["additionalProperties"] is False


def test_flatten_keeps_lists_whole():
    assert flatten({"a": {"b": [1, 2]}, "c": {}}) == {"a.b": [1, 2], "c": {}}
