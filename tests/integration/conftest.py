"""Jobs on a real local Ray, which the first run starts and all share."""

import os

import pytest

from pipeline import Job, embed

os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture
def job(tmp_path, tiny):
    """A job over a folder, with a tiny BERT and small parts."""

    def make(dataset, *, text="text", keep=(), features=None, **sections) -> Job:
        content = {
            "source": {"dataset": str(dataset), "text": text, "keep": list(keep), **sections.pop("source", {})},
            "model": {"name": tiny("bert"), "max_tokens": 64, **sections.pop("model", {})},
            "output": {"path": str(tmp_path / "out"), "rows_per_part": 100, **sections.pop("output", {})},
            **sections,
        }
        return Job.parse(content | ({"features": features} if features else {}))

    return make


@pytest.fixture
def run():
    return embed
