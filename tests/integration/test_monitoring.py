"""Metrics of a run that loses a replica, on a Ray head of an operator, as a real Prometheus scrapes them."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.servers.monitoring import MONITORING, Prometheus, RayHead, prometheus, ray_head, tool
from tests.waiting import RUN_S, wait_until
from varve.cli.corpus import docstrings

pytestmark = pytest.mark.skipif(
    not tool("prometheus"), reason="Prometheus is not installed: run `make servers` (a Debian package)"
)

ROWS, ROWS_PER_PART, NULLS, NOT_UTF8 = 960, 48, 5, 3
README = (MONITORING.parent / "README.md").read_text()
# name → type, as documented.
METRICS = dict(re.findall(r"^\| `(ray_varve_\w+)[^|]*\| (counter|gauge) \|", README, re.MULTILINE))
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


@dataclass(frozen=True)
class Observed:
    prometheus: Prometheus
    manifest: dict
    kinds: dict  # name → metadata, collected during the run: that of a gauge disappears with it
    since: float
    until: float

    def ever(self, query: str) -> list[float]:
        """All finite values of a query during the run."""
        series = self.prometheus.over(query, self.since, self.until)
        numbers = [float(value) for one in series for _, value in one["values"]]
        return [number for number in numbers if math.isfinite(number)]

    def value(self, query: str) -> float:
        value = self.prometheus.value(query)
        assert value is not None, query
        return value


def run_and_kill(head: RayHead, server: Prometheus, folder: Path, model: str) -> tuple[dict, dict]:
    """Kill one of the two replicas of a run; returns (its manifest, name → metadata of its metrics)."""
    (folder / "docs").mkdir()
    good = [text.encode() for _, text in islice(docstrings(), ROWS - NULLS - NOT_UTF8)]
    texts = [None] * NULLS + [b"\xff"] * NOT_UTF8 + good
    for shard in range(2):
        column = pa.array(texts[shard::2]).view(pa.string())
        pq.write_table(pa.table({"text": column}), folder / f"docs/{shard}.parquet")
    command = [
        sys.executable, "-m", "varve", "embed", "--dataset", str(folder / "docs"), "--text", "text", "--model", model,
        "--max-tokens", "64", "--output", str(folder / "out"), "--set", f"output.rows_per_part={ROWS_PER_PART}",
        "--set", "compute.replicas=2",
    ]  # fmt: skip
    with subprocess.Popen(command, env=head.environment, stdout=subprocess.DEVNULL) as driver:
        wait_until(
            lambda: server.value("ray_varve_replicas_ready") == 2,
            "both replicas are ready",
            alive=driver,
            timeout_s=RUN_S,
        )
        os.kill(head.workers("Replica")[0], signal.SIGKILL)
        kinds: dict = {}

        def ended() -> bool:
            kinds.update(server.ask("metadata"))
            return driver.poll() is not None

        wait_until(ended, "the run has ended", timeout_s=RUN_S)
        assert driver.returncode == 0
    return json.loads((folder / "out/_varve/manifest.json").read_text()), kinds | server.ask("metadata")


@pytest.fixture(scope="module")
def observed(tmp_path_factory, minilm):
    folder = tmp_path_factory.mktemp("monitoring")
    since = time.time()
    with ray_head(cpus=3) as head, prometheus(folder, head.targets) as server:
        manifest, kinds = run_and_kill(head, server, folder, minilm)
        wait_until(lambda: server.value("sum(ray_varve_committed_rows_total)") == ROWS, "all rows are scraped")
        wait_until(lambda: server.value("ray_varve_replicas_ready") is None, "the gauges end with the run")
        yield Observed(server, manifest, kinds, since, time.time())


def test_metrics_of_a_run_are_exactly_the_documented_ones(observed):
    names = observed.prometheus.ask("label/__name__/values")
    assert {name for name in names if name.startswith("ray_varve_")} == set(METRICS)
    kinds = observed.kinds
    # With OpenMetrics the name of a counter has no suffix.
    bare = {name: name if name in kinds else name.removesuffix("_total") for name in METRICS}
    assert {name: kinds[bare[name]][0]["type"] for name in METRICS} == METRICS


def test_counters_agree_with_the_manifest(observed):
    manifest = observed.manifest
    assert observed.value("sum(ray_varve_committed_rows_total)") == manifest["num_rows"] == ROWS
    assert observed.value("sum(ray_varve_committed_parts_total)") == len(manifest["parts"])
    assert observed.value("sum(ray_varve_written_bytes_total)") == manifest["file_bytes"]
    assert observed.value("sum(ray_varve_store_retries_total)") == pytest.approx(0)
    assert observed.value("sum(ray_varve_rows_total)") == ROWS
    assert observed.value("sum(ray_varve_tokens_total)") == manifest["num_tokens"]
    assert observed.value("sum(ray_varve_null_rows_total)") == manifest["num_null_texts"] == NULLS
    assert observed.value("sum(ray_varve_error_rows_total)") == manifest["num_errors"] == NOT_UTF8
    # Replicas count all their work, including parts that are encoded again after a death.
    again = observed.value("sum(ray_varve_replica_tokens_total)") - manifest["num_tokens"]
    assert again >= 0
    if not again:
        assert observed.value('sum(ray_varve_stage_seconds_total{stage="encode"})') == pytest.approx(
            manifest["stages"]["encode"]["work_s"], rel=1e-3
        )
    for stage in ("read", "tokenize", "encode", "write"):
        assert observed.value(f'sum(ray_varve_stage_seconds_total{{stage="{stage}"}})') > 1e-4


def test_death_of_a_replica_is_counted_and_no_counter_falls(observed):
    assert observed.value("sum(ray_varve_replica_restarts_total)") == 1
    assert observed.manifest["counts"]["lost"] == round(observed.value("sum(ray_varve_lost_parts_total)"))
    counters = [name for name, kind in METRICS.items() if kind == "counter"]
    for name in counters:
        assert max(observed.ever(f"resets({name}[10m])")) == 0, name
    replicas = observed.prometheus.ask("label/replica/values")
    assert replicas == ["0", "1"]


def test_gauges_are_plausible(observed):
    assert {0 <= ratio <= 1 for ratio in observed.ever("ray_varve_device_busy_ratio")} == {True}
    assert max(observed.ever("ray_varve_device_busy_ratio")) > 0.2
    assert {0 < ratio <= 1 for ratio in observed.ever("ray_varve_pack_fill_ratio")} == {True}
    missing = observed.ever("ray_varve_missing_rows")
    assert missing[0] == ROWS
    assert missing == sorted(missing, reverse=True)
    assert max(observed.ever("ray_varve_replicas_ready")) == 2
    assert max(observed.ever("ray_varve_parts_under_way")) >= 1
    assert max(observed.ever("ray_varve_oldest_part_seconds")) > 0
    moved = observed.ever("ray_varve_last_block_timestamp_seconds")
    assert observed.since < moved[0] <= moved[-1] < observed.until


def test_labels_are_few_and_contain_no_path(observed):
    series = observed.prometheus.ask("series", **{"match[]": '{__name__=~"ray_varve_.+"}'})
    ours = {(key, one[key]) for one in series for key in one if key in {"run", "stage", "replica", "node"}}
    assert {value for key, value in ours if key == "run"} == {observed.manifest["fingerprint"][:8]}
    assert not [value for one in series for value in one.values() if "docs" in value or "/out" in value]
    assert len(series) < 40


@pytest.mark.parametrize(("panel", "query"), QUERIES, ids=[f"{title} {at}" for at, (title, _) in enumerate(QUERIES)])
def test_query_of_the_dashboard_has_data(observed, panel, query):
    assert observed.ever(query.replace("$__rate_interval", "10s").replace("$run", ".+")), panel


def test_variable_of_the_dashboard_lists_the_run(observed):
    variable = next(one for one in DASHBOARD["templating"]["list"] if one["name"] == "run")
    metric = re.fullmatch(r"label_values\((\w+), run\)", variable["definition"])[1]
    runs = observed.prometheus.ask("label/run/values", **{"match[]": metric})
    assert runs == [observed.manifest["fingerprint"][:8]]


def test_rules_are_evaluated_and_no_alert_fires_for_a_run_that_succeeds(observed):
    rules = [rule for group in observed.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert not observed.ever('ALERTS{alertstate="firing"}')


def check(*command: str, stdin: str | None = None) -> None:
    done = subprocess.run([tool("promtool"), *command], input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_and_units_follow_the_conventions_of_prometheus():
    lines = [f"# HELP {name} Text.\n# TYPE {name} {kind}\n{name} 1" for name, kind in METRICS.items()]
    assert len(METRICS) > 15
    check("check", "metrics", stdin="\n".join([*lines, ""]))


def test_configuration_and_rules_are_valid():
    check("check", "config", str(MONITORING / "prometheus.yml"))
    check("check", "rules", "--lint-fatal", str(MONITORING / "alerts.yml"))


def test_every_alert_fires_in_its_test_case_and_no_other():
    check("test", "rules", str(MONITORING / "alerts_test.yml"))
    alerts = {
        rule["alert"]
        for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text())["tests"]
    fired = {
        re.search(r'alertname="(\w+)"', sample["labels"])[1]
        for case in cases
        for one in case["promql_expr_test"]
        for sample in one["exp_samples"]
    }
    assert fired == alerts
