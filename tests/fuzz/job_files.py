"""Targets: job files and index files."""

import json
import shutil
from pathlib import Path

from tests.fuzz.target import Target
from varve.config.index import Index
from varve.config.job import Job

_RECIPES = Path(__file__).parents[2] / "jobs/recipes"


def _make(folder: Path) -> None:
    for file in _RECIPES.glob("*.yaml"):
        place = folder / ("indexes" if file.name.startswith("index-") else "jobs")
        place.mkdir(exist_ok=True)
        shutil.copy(file, place)


def _read_job(folder: Path, name: str) -> None:
    job = Job.load(str(folder / name))
    json.dumps(job.identity(), sort_keys=True)
    assert Job.reopen(json.loads(job.model_dump_json()), "job").identity() == job.identity()


def _read_index(folder: Path, name: str) -> None:
    Index.load(str(folder / name)).model_dump_json()


TARGETS = (
    Target("job-file", _make, ("jobs/*.yaml",), _read_job, confined=True),
    Target("index-file", _make, ("indexes/*.yaml",), _read_index, confined=True),
)
