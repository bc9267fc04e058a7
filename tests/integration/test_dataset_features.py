"""The Python API: jobs, and features of a Ray dataset."""

import json

import pyarrow as pa
import pytest

from varve import Job


@pytest.fixture
def docs(write_shards, tmp_path):
    return write_shards(tmp_path / "docs", [pa.table({"text": [f"text {row}" for row in range(20)]})])


def test_job_from_python_equals_job_from_file(job, docs, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(job(docs).model_dump(mode="json")))
    assert Job.load(str(path)) == job(docs)


def test_hub_id_is_pinned_to_its_commit_once(job, docs, monkeypatch):
    """Only the Hub is replaced: it answers with a commit, and the loader must request that commit, not the branch."""
    from types import SimpleNamespace

    from varve.source import hf_builder
    from varve.source.open_dataset import open_dataset

    requests = []

    def load(**arguments):
        requests.append(arguments)
        return real(**{key: value for key, value in arguments.items() if key != "revision"} | {"path": str(docs)})

    real = hf_builder.load_dataset_builder
    monkeypatch.setattr(hf_builder, "load_dataset_builder", load)
    monkeypatch.setattr(
        hf_builder, "HfApi", lambda: SimpleNamespace(dataset_info=lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    )
    dataset = open_dataset(job("someone/corpus", source={"revision": "main"}).source)
    assert dataset.commit == "c0ffee"
    assert {arguments["revision"] for arguments in requests} == {"c0ffee"}


def test_features_of_a_ray_dataset_keep_its_columns(tiny):
    import ray

    from varve import Feature, features

    dataset = ray.data.from_items([{"text": f"text {row}", "id": row} for row in range(20)])
    result = features(dataset, text="text", model=tiny("bert"), features={"e": Feature(pool="cls")})
    rows = sorted(result.take_all(), key=lambda row: row["id"])
    assert [row["text"] for row in rows] == [f"text {row}" for row in range(20)]
    assert rows[3]["error"] is None
    assert len(rows[0]["e"]) == 32


def test_features_of_a_dataset_with_columns_of_these_names_fail_with_the_name(tiny):
    import ray
    from ray.exceptions import UserCodeException

    from varve import features

    dataset = ray.data.from_items([{"text": "text", "shard": "mine", "row": 7}])
    once = features(dataset, text="text", model=tiny("bert"), features={"a": "cls"}).materialize()
    with pytest.raises(UserCodeException, match=r"JobError: .*'num_tokens'"):
        features(once, text="text", model=tiny("bert"), features={"b": "mean"}).take_all()
    renamed = once.drop_columns(["num_tokens", "truncated"]).rename_columns({"error": "error_a"})
    (row,) = features(renamed, text="text", model=tiny("bert"), features={"b": "mean"}).take_all()
    assert (row["shard"], row["row"], len(row["a"]), len(row["b"])) == ("mine", 7, 32, 32)
    assert (row["error_a"], row["error"], row["num_tokens"]) == (None, None, 3)


def test_features_of_many_batches_are_those_of_each_text(tiny):
    """A replica encodes two batches at a time and must not swap their vectors."""
    import numpy as np
    import ray

    from varve import Encoder, features

    texts = [f"text {row} " * (row % 9) for row in range(300)]
    rows = [{"text": text, "id": row} for row, text in enumerate(texts)]
    dataset = ray.data.from_items(rows, override_num_blocks=20)
    result = features(dataset, text="text", model=tiny("bert"), features={"e": "mean@-1"}, batch_rows=7)
    vectors = {row["id"]: row["e"] for row in result.take_all()}
    expected = Encoder(tiny("bert"), {"e": "mean@-1"}, device="cpu")(texts)["e"]
    assert sorted(vectors) == list(range(300))
    assert np.array_equal(np.stack([vectors[row] for row in range(300)]), expected)
