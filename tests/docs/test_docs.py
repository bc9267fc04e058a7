"""What the documents say is true."""

import argparse
import re
from pathlib import Path

import pytest
import yaml

from varve.cli.command import add_job_arguments
from varve.cli.main import COMMANDS
from varve.config.compute import Compute
from varve.config.feature import Computed, Feature
from varve.config.job import Job
from varve.config.model import Model
from varve.config.output import Output
from varve.config.source import Source

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_job_file_of_the_readme_is_a_job_and_names_every_key():
    content = yaml.safe_load(blocks("yaml")[0])
    Job.parse(content)
    for section, model in {"source": Source, "model": Model, "output": Output, "compute": Compute}.items():
        written = set(content[section]) | ({"name", "revision"} if section == "source" else set())
        assert written == set(model.model_fields), section
    options = {key for feature in content["features"].values() for key in feature}
    assert options == set(Feature.model_fields) | set(Computed.model_fields)


@pytest.mark.parametrize("recipe", sorted((ROOT / "jobs/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_is_a_job_with_hardware_and_cost_in_its_header(recipe):
    Job.load(str(recipe))
    header = recipe.read_text().split("source:")[0]
    assert "Hardware:" in header
    assert "Cost:" in header


def test_every_command_is_in_the_readme():
    assert all(f"varve {name}" in README for name in COMMANDS)


def test_flags_are_these_and_no_more():
    """Growth of the command line is a decision: this list is edited by hand."""
    parser = argparse.ArgumentParser(add_help=False)
    add_job_arguments(parser)
    flags = set(re.findall(r"^  (--[a-z-]+)", parser.format_help(), re.MULTILINE))
    assert flags == {
        "--set", "--dataset", "--data-files", "--split", "--text", "--keep", "--model", "--max-tokens", "--feature",
        "--output",
    }  # fmt: skip


def test_python_of_the_readme_compiles():
    for block in blocks("python"):
        compile(block, "README.md", "exec")


def test_project_speaks_of_itself_alone():
    foreign = re.compile("|".join(("/w" + "ork/", "/f" + "arm", r"\.\./sha" + "red", "/opt" + "/")))
    for path in [*ROOT.glob("*.md"), *(ROOT / "infra").rglob("*.md"), *(ROOT / "pipeline").rglob("*.py")]:
        assert not foreign.search(path.read_text()), path
