"""What the pages of the documentation name exists, and what exists is documented."""

import os
import re
from typing import Any, get_args

import pytest
import yaml

from tests.docs.pages import (
    INFRA,
    JOBS,
    PAGES,
    PIPELINE,
    README,
    ROOT,
    SEARCH,
    all_blocks,
    all_flags,
    anchors,
    commands,
    flags,
    flags_of,
    parser_of,
    prose,
    read,
    sections,
    table,
)
from varve.cli.main import COMMANDS
from varve.config.compute import Compute, Replicas
from varve.config.feature import Computed, Feature, Pool
from varve.config.index import Index
from varve.config.job import Job, json_schema
from varve.config.model import Chunks, Model, Windows
from varve.config.output import Output
from varve.config.source import Source
from varve.monitoring import prometheus
from varve.monitoring.bottleneck import STAGES

DOCUMENTS = [path for folder in (".", "infra", "jobs", "pipeline") for path in sorted((ROOT / folder).glob("*.md"))]
DOCUMENTS += sorted((ROOT / "infra/decisions").glob("*.md"))
# Set by one part of Varve for another.
INTERNAL_VARIABLES = {"VARVE_FOLLOWED"}


def test_readme_is_short():
    assert len(read(README).splitlines()) <= 200


# The job file.


def documented_keys(section: str, page: str = JOBS) -> dict[str, str]:
    """key → default, of a section's tables of keys."""
    rows = table(sections(page)[section], "| key | default | |")
    return {key.strip("`"): default.strip("`") for key, default, _ in rows}


def defaults(model: Any, prefix: str = "") -> dict[str, str]:
    return {
        f"{prefix}{field.alias or key}": "required" if field.is_required() else written(field.default)
        for key, field in model.model_fields.items()
    }


def written(default: Any) -> str:
    """A default as a job file writes it."""
    value = list(default) if isinstance(default, tuple) else default
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("source", defaults(Source)),
        ("model", defaults(Model) | defaults(Windows, "long_text.") | defaults(Chunks, "long_text.chunk.")),
        ("features", defaults(Feature) | defaults(Computed)),
        ("output", defaults(Output)),
        ("compute", defaults(Compute) | defaults(Replicas, "replicas.")),
    ],
)
def test_keys_of_the_job_file_are_documented_with_their_defaults(section, expected):
    assert documented_keys(section) == expected


def test_keys_of_the_index_file_are_documented_with_their_defaults():
    assert documented_keys("Build an index", SEARCH) == defaults(Index)


def test_every_key_of_the_json_schema_is_documented():
    schema = json_schema()
    keys = {key for definition in schema["$defs"].values() for key in definition.get("properties", {})}
    documented = {key for section in schema["properties"] for key in documented_keys(section)}
    assert keys == {key.rpartition(".")[2] for key in documented}


def test_every_pool_is_documented():
    rows = table(sections(JOBS)["features"], "| `pool` | vector |")
    assert {pool for names, _ in rows for pool in re.findall(r"`(\w+)`", names)} == set(get_args(Pool))


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_documented_job_or_index_is_one(block):
    is_index = block.page == SEARCH
    (Index if is_index else Job).parse(yaml.safe_load(block.text))


@pytest.mark.parametrize("recipe", sorted((ROOT / "jobs/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_is_a_job_or_an_index_with_hardware_and_cost_in_its_header(recipe):
    is_index = recipe.stem.startswith("index-")
    (Index if is_index else Job).load(str(recipe))
    header = re.split(r"^\w+:", recipe.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    assert "Hardware:" in header
    assert "Cost:" in header


# Commands.


@pytest.mark.parametrize("name", COMMANDS)
def test_command_has_a_section_that_names_its_flags(name):
    shared = job_arguments() if job_arguments() <= flags_of(name) else set()
    assert flags_of(name) - shared <= flags(sections(JOBS)[f"varve {name}"])


def test_job_arguments_are_documented():
    assert flags(sections(JOBS)["Job arguments"]) == job_arguments()


@pytest.mark.parametrize("page", PAGES)
def test_documented_flags_exist(page):
    assert flags(prose(page)) <= all_flags()


@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_documented_commands_are_parsed_by_their_own_parsers(block):
    for command in commands(block.text):
        name, *rest = command.argv
        parser_of(name).parse_args(rest)  # exits at an unknown flag, but accepts the beginning of one
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= all_flags()


def test_flags_are_these_and_no_more():
    """Growth of the command line is a decision: this list is edited by hand."""
    assert job_arguments() == {
        "--set", "--dataset", "--data-files", "--split", "--text", "--keep", "--model", "--role", "--prompt",
        "--max-tokens", "--feature", "--output",
    }  # fmt: skip


def test_documented_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {name for block in all_blocks("bash") for name in re.findall(r"^make ([a-z-]+)", block.text, re.MULTILINE)}
    assert {"demo", "test"} <= asked <= targets


def job_arguments() -> set[str]:
    return flags_of("embed") & flags_of("plan") & flags_of("submit")


def test_environment_variables_that_are_read_are_documented():
    asked = re.compile(r"environ(?:\.get\(|\[)\s*\"(\w+)\"(?!\] = )")
    variables = {name for path in (ROOT / "pipeline").rglob("*.py") for name in asked.findall(path.read_text())}
    documented = set(re.findall(r"`(\w+)", "".join(map(prose, PAGES))))
    assert variables - INTERNAL_VARIABLES <= documented


# Monitoring.


def test_metrics_are_those_that_are_registered(monkeypatch):
    registered: dict[str, tuple[str, set[str]]] = {}

    def metric(kind: str) -> type:
        class Recorded:
            def __init__(self, name: str, _description: str, tag_keys: tuple[str, ...]) -> None:
                registered[f"ray_{name}"] = (kind, set(tag_keys) - {"run"})

            def inc(self, *_: Any) -> None:
                pass

        return Recorded

    monkeypatch.setattr(prometheus, "Counter", metric("counter"))
    monkeypatch.setattr(prometheus, "Gauge", metric("gauge"))
    prometheus.Meter("run")
    documented = {}
    for name, kind, *_ in table(sections(INFRA)["Metrics"], "| metric | type | unit | |"):
        metric_name, _, labels = name.strip("`}").partition("{")
        documented[metric_name] = (kind, set(labels.split(",")) - {""})
    assert documented == registered


def test_stages_of_the_metric_are_those_of_a_run():
    row = next(row for row in sections(INFRA)["Metrics"].splitlines() if "stage_seconds" in row)
    assert tuple(re.findall(r"`(\w+)`", row.rpartition(" | ")[2])) == STAGES


def test_alerts_are_those_of_the_rules():
    rules = yaml.safe_load((ROOT / "infra/monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    documented = [name.strip("`") for name, _ in table(sections(INFRA)["Alerts"], "| alert | fires at |")]
    assert documented == [rule["alert"] for rule in rules]


# The house.


def test_folders_of_the_package_are_listed():
    listed = [name.strip("`/") for name, _ in table(sections(PIPELINE)["Folders"], "| folder | content |")]
    package = ROOT / "pipeline/varve"
    assert sorted(listed) == sorted(str(path.parent.relative_to(package)) for path in package.rglob("*/__init__.py"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    text = document.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), target
        assert linked.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(linked.read_text()), target


def test_project_speaks_of_itself_alone():
    foreign = re.compile("|".join(("/w" + "ork/", "/f" + "arm", r"\.\./sha" + "red", "/opt" + "/")))
    for path in [*DOCUMENTS, *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.yaml")]:
        assert not foreign.search(path.read_text()), os.fspath(path)
