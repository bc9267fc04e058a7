"""A job that is written differently, but means the same, resumes the output of the first one."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from varve.config.feature import Feature
from varve.config.job import Job
from varve.errors import JobError
from varve.planning.saved_plan import prepare, save_plan
from varve.storage.object_store import Storage


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    """The current folder with docs/a.parquet and a model; its Storage holds the plans of jobs."""
    (tmp_path / "docs").mkdir()
    pq.write_table(pa.table({"id": [1, 2], "text": ["one", "two words"]}), tmp_path / "docs/a.parquet")
    shutil.copytree(tiny("bert"), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_job(**changes) -> Job:
    content = {
        "source": {"dataset": "parquet", "data_files": "docs/a.parquet", "text": "text", "keep": ["id"]},
        "model": {"name": "model"},
        "features": {"e": {"pool": "mean"}, "all": {"pool": "cls", "layers": "all"}},
        "output": {"path": "out"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        content[section] = {**content.get(section, {}), name: value} if name else value
    return Job.parse(content)


def plan_of(job: Job):
    return prepare(job, Storage(job.output.path), device="cpu")


def start(job: Job):
    """Plan and save the first run."""
    plan = plan_of(job)
    save_plan(plan, Storage(job.output.path))
    return plan


SAME = [
    ({}, {"source__data_files": ["docs/a.parquet"]}),
    ({"source__data_files": ["docs/a.parquet"]}, {}),
    ({}, {"source__data_files": "./docs/a.parquet"}),
    ({}, {"source__data_files": "HERE/docs/a.parquet"}),
    ({"source__data_files": "HERE/docs/*.parquet"}, {"source__data_files": ["docs/*.parquet"]}),
    (
        {"source__dataset": "docs", "source__data_files": None},
        {"source__dataset": "HERE/docs/", "source__data_files": None},
    ),
    ({}, {"model__name": "HERE/model"}),
    ({"model__name": "HERE/model"}, {"model__name": "./model/"}),
    ({}, {"model__max_tokens": 130}),
    ({"model__max_tokens": 130}, {}),
    ({}, {"model__dtype": "float32"}),
    ({}, {"output__rows_per_part": "RESOLVED"}),
    ({}, {"compute__tokens_per_pack": 1024}),
    ({}, {"features__e": {"pool": "mean", "layers": 3}}),
    ({}, {"features__e": {"pool": "mean", "layers": [-1]}}),
    ({}, {"features__all": {"pool": "cls", "layers": [0, 1, 2, -1]}}),
    ({"features__e": {"pool": "mean", "layers": 3}}, {"features__e": {"pool": "mean"}}),
    ({"model__long_text": {"window": 64}}, {"model__long_text": {"window": 64}, "model__max_tokens": 100}),
]


@pytest.mark.parametrize(("first", "second"), SAME, ids=range(len(SAME)))
def test_job_that_means_the_same_resumes_with_the_same_plan(first, second, here):
    def job(changes) -> Job:
        values = {
            key: value.replace("HERE", str(here)) if isinstance(value, str) else value for key, value in changes.items()
        }
        if values.get("output__rows_per_part") == "RESOLVED":
            values["output__rows_per_part"] = plan_of(make_job()).resolved.rows_per_part
        return make_job(compute__stall_s=7, **values) if changes is second else make_job(**values)

    before = start(job(first))
    after = plan_of(job(second))
    assert after.fingerprint == before.fingerprint
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.feature_plan == before.feature_plan
    assert after.job.compute.stall_s == 7  # what does not change bytes is that of this run


def test_features_in_another_order_keep_the_columns_of_the_first_run(here):
    before = start(make_job())
    content = json.loads(json.dumps(make_job().model_dump(mode="json")))
    content["features"] = dict(reversed(content["features"].items()))
    after = plan_of(Job.parse(content))
    assert after.schema.equals(before.schema, check_metadata=True)


def test_auto_that_resolves_to_something_else_is_refused(here):
    start(make_job(model__max_tokens=64))
    with pytest.raises(JobError, match=r'Changed:\n  model\.max_tokens: 64 → "auto"\n'):
        plan_of(make_job())


def declare(folder) -> None:
    """Let a model declare the mean after a Dense module."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    listed = [{"idx": n, "path": path, "type": f"x.{kind}"} for n, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    for path in ("1_Pooling", "2_Dense"):
        (folder / path).mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    (folder / "2_Dense/config.json").write_text("{}")
    save_dense(folder, seed=0)


def save_dense(folder, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(8, 32)).astype(np.float32)
    save_file({"linear.weight": weight}, folder / "2_Dense/model.safetensors")


def job_without_features() -> Job:
    content = make_job().model_dump(mode="json")
    del content["features"]
    return Job.parse(content)


@pytest.mark.parametrize("pool", ["mean", "declared"])
def test_job_without_features_resumes_an_output_of_either_default(pool, here):
    declare(here / "model")
    features = {"embedding": {"pool": pool}}
    before = start(Job.parse({**make_job().model_dump(mode="json"), "features": features}))
    after = plan_of(job_without_features())
    assert after.fingerprint == before.fingerprint
    assert after.feature_plan == before.feature_plan


def test_job_without_features_does_not_resume_other_features(here):
    start(make_job())
    with pytest.raises(JobError, match=r"features\.embedding"):
        plan_of(job_without_features())


def test_default_is_the_mean_for_a_checkpoint_that_declares_nothing(here):
    assert plan_of(job_without_features()).job.features == {"embedding": Feature(pool="mean")}
    declare(here / "model")
    plan = plan_of(job_without_features())
    assert plan.job.features == {"embedding": Feature(pool="declared")}
    assert plan.descriptions["embedding"].startswith("mean → Dense 32→8 tanh; ")


def test_description_has_the_options_of_the_feature(here):
    declare(here / "model")
    modules = json.loads((here / "model/modules.json").read_text())
    (here / "model/modules.json").write_text(json.dumps([modules[0], {**modules[2], "idx": 1}]))
    settings = {"model_type": "MultiVectorEncoder"}
    (here / "model/config_sentence_transformers.json").write_text(json.dumps(settings))
    plan = plan_of(make_job(features={"e": {"pool": "declared", "token_pooling": 2}}))
    assert "Dense 32→8 tanh → clusters of 2 tokens; " in plan.descriptions["e"]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("2_Dense/model.safetensors", lambda folder: save_dense(folder, seed=1)),
        (
            "1_Pooling/config.json",
            lambda folder: (folder / "1_Pooling/config.json").write_text('{"pooling_mode":"max"}'),
        ),
    ],
)
def test_changed_file_of_a_declared_vector_is_refused_by_name_and_makes_another_job(file, change, here):
    declare(here / "model")
    before = start(job_without_features())
    change(here / "model")
    with pytest.raises(JobError, match=f"the model's {file}"):
        plan_of(job_without_features())
    shutil.rmtree("out")
    assert plan_of(job_without_features()).fingerprint != before.fingerprint


def test_declaration_does_not_change_a_job_with_features_of_its_own(here):
    before = start(make_job())
    declare(here / "model")
    assert plan_of(make_job()).fingerprint == before.fingerprint


def test_file_of_the_current_folder_is_not_one_of_the_dataset(here):
    shutil.copy("docs/a.parquet", "a.parquet")
    start(make_job(source__dataset="docs", source__data_files="a.parquet"))
    with pytest.raises(JobError, match=r"belongs to another job\. Changed:\n  source\.data_files: "):
        plan_of(make_job(source__dataset="docs", source__data_files=str(here / "a.parquet")))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"source__data_files": "docs/b.parquet"}, "source.data_files"),
        ({"source__data_files": ["docs/a.parquet", "docs/b.parquet"]}, "source.data_files"),
        ({"source__dataset": "docs", "source__data_files": None}, "source.dataset"),
        ({"model__name": "other"}, "model.name"),
        ({"model__max_tokens": 64}, "model.max_tokens"),
        ({"model__dtype": "bfloat16"}, "model.dtype"),
        ({"output__rows_per_part": 3}, "output.rows_per_part"),
        ({"compute__tokens_per_pack": 512}, "compute.tokens_per_pack"),
        ({"features__e": {"pool": "mean", "layers": 2}}, "features.e.layers"),
        ({"features__e": {"pool": "mean", "normalize": True}}, "features.e.normalize"),
        ({"features__more": {"pool": "max"}}, "features.more.pool"),
    ],
)
def test_job_that_means_something_else_is_refused_with_the_key(changes, key, here):
    shutil.copytree("model", "other")
    pq.write_table(pa.table({"id": [3], "text": ["three"]}), "docs-b.parquet")
    start(make_job())
    with pytest.raises(JobError, match=r"belongs to another job\. Changed:\n") as error:
        plan_of(make_job(features__all={"pool": "cls", "layers": [0, 1, 2, 3]}, **changes))
    assert f"\n  {key}: " in str(error.value)
    assert key == "model.name" or "features.all" not in str(error.value)  # layers of another model may be others


def test_an_output_that_was_begun_with_a_removed_key_is_resumed(here):
    first = start(make_job())
    saved = here / "out/_varve/job.json"
    content = json.loads(saved.read_text())
    content["job"]["compute"]["tokenizers"] = 4
    saved.write_text(json.dumps(content))
    assert plan_of(make_job()).fingerprint == first.fingerprint
    with pytest.raises(JobError, match=r"compute\.tokenizers: unknown key\. .* Remove it: each replica tokenizes"):
        make_job(compute__tokenizers=4)
