"""`varve submit` to a real cluster, from an environment that holds a token and nothing more."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml

from tests.clashing import run_ones, write_clashing
from tests.reference_run import rows_of
from tests.servers.cluster import ray_head
from tests.servers.processes import free_port
from tests.servers.tls import behind_tls
from tests.waiting import PATIENCE_S, RUN_S, wait_until
from varve import Job

SECRET = "a-value-that-must-stay-where-it-is"


@pytest.fixture(scope="module")
def head():
    with ray_head(LAKE_PASSWORD=SECRET) as head:
        yield head


@pytest.fixture
def job_file(tmp_path, job):
    """(settings) → a job file over 120 texts in two shards."""
    write_clashing(tmp_path)  # the folder in which the command runs
    (tmp_path / "docs").mkdir()
    for shard in range(2):
        texts = [f"text {row} of shard {shard}" for row in range(60)]
        pq.write_table(pa.table({"text": texts, "id": range(60)}), tmp_path / f"docs/{shard}.parquet")

    def make(name: str = "job", **sections):
        made = job(tmp_path / "docs", keep=["id"], output={"path": str(tmp_path / f"{name}-out"), "rows_per_part": 20})
        content = made.model_dump(mode="json")
        for section, values in sections.items():
            content[section] |= values
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return make


def command(job_file, address, *options) -> list[str]:
    return [str(Path(sys.executable).with_name("varve")), "submit", str(job_file), "--to", address, *options]


def submit(job_file, head, *options, **environment) -> subprocess.CompletedProcess:
    argv = command(job_file, head.address, *options)
    known = {name: value for name, value in (head.environment | environment).items() if value}
    return subprocess.run(
        argv, env=known, cwd=job_file.parent, capture_output=True, text=True, timeout=RUN_S, check=False
    )


def rows(path) -> pa.Table:
    return ds.dataset(path / "data").to_table().sort_by([("shard", "ascending"), ("row", "ascending")])


def test_second_submission_attaches_then_does_nothing_and_the_rows_are_right(head, job_file, tmp_path):
    path = job_file("there", compute={"env": ["LAKE_PASSWORD"]})
    first = submit(path, head, "--no-wait", "--json")
    assert first.returncode == 0, first.stderr
    with behind_tls(head.address, tmp_path) as (address, authority):  # another way to the same head
        followed = submit(path, replace(head, address=address), "--json", REQUESTS_CA_BUNDLE=str(authority))
    assert followed.returncode == 0, followed.stderr
    report = json.loads(followed.stdout)
    assert report["status"] == "SUCCEEDED"
    assert report["submission_id"] == json.loads(first.stdout)["submission_id"]
    assert "attached" in followed.stderr
    assert "Complete" in followed.stderr

    token = Path(head.environment["HOME"], ".ray/auth_token")  # where Ray keeps it
    token.parent.mkdir()
    token.write_text(head.environment["RAY_AUTH_TOKEN"])
    again = submit(path, head, "--json", RAY_AUTH_TOKEN="")
    token.unlink()
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["finished_before"]

    assert rows(tmp_path / "there-out").equals(rows_of(Job.load(str(path))))
    assert run_ones(tmp_path) == []

    logs = submit(path, head, "--logs")
    assert logs.returncode == 0
    assert "Complete" in logs.stdout
    document = json.loads(submit(path, head, "--logs", "--json").stdout)
    assert document == {"submission_id": report["submission_id"], "status": "SUCCEEDED", "logs": logs.stdout}
    written = [file.read_bytes() for file in (tmp_path / "there-out").rglob("*") if file.is_file()]
    assert not any(SECRET.encode() in content for content in written)
    assert SECRET not in followed.stderr + logs.stdout


def test_failure_on_the_cluster_is_reported_with_its_cause(head, job_file, tmp_path):
    path = job_file()
    (tmp_path / "docs/1.parquet").write_bytes((tmp_path / "docs/1.parquet").read_bytes()[:-60] + b"\0" * 60)
    failed = submit(path, head, "--json")
    assert failed.returncode in (1, 2)
    assert "1.parquet" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_variable_that_a_node_lacks_is_named(head, job_file):
    failed = submit(job_file(compute={"env": ["LAKE_PASSWORD", "NOT_THERE"]}), head)
    assert failed.returncode == 1
    assert "NOT_THERE" in failed.stderr
    assert "LAKE_PASSWORD" not in failed.stderr.partition("NOT_THERE")[0].rpartition("\n")[2]


def test_interrupt_detaches_and_the_run_continues(head, job_file, tmp_path):
    path = job_file("detached")
    argv = command(path, head.address)
    process = subprocess.Popen(argv, env=head.environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    output = ""
    while "shard(s)" not in output:
        line = process.stderr.readline()
        assert line, output
        output += line
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0
    assert "detached" in process.stderr.read()
    wait_until((tmp_path / "detached-out/_varve/manifest.json").exists, "the run has ended", timeout_s=RUN_S)


def test_unknown_submission_is_reported_with_the_advice_to_submit_again(head):
    """As after a restart of the head while a client follows a run."""
    follow = (
        "import sys\nfrom varve.submission.jobs_client import ClusterHead\n"
        "list(ClusterHead(sys.argv[1]).follow('varve-before-1'))"
    )
    argv = [sys.executable, "-c", follow, head.address]
    known = head.environment | {"RAY_AUTH_MODE": "token"}
    gone = subprocess.run(argv, env=known, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert "varve-before-1" in gone.stderr
    assert "submit again" in gone.stderr


def test_untrusted_certificate_is_one_message(head, job_file, tmp_path):
    path = job_file()
    with behind_tls(head.address, tmp_path) as (address, _):
        behind = replace(head, address=address)
        untrusted, missing = submit(path, behind), submit(path, behind, REQUESTS_CA_BUNDLE="/no/such/file")
    assert (untrusted.returncode, missing.returncode) == (1, 2)
    assert "the certificate is not trusted" in untrusted.stderr
    assert "/no/such/file: no such file" in missing.stderr
    assert len((untrusted.stderr + missing.stderr).splitlines()) == 2


@pytest.mark.parametrize(
    ("address", "token", "exit_code", "message"),
    [
        (None, None, 1, "Set RAY_AUTH_TOKEN"),
        (None, "not-the-token-0123456789", 1, "Set RAY_AUTH_TOKEN"),
        ("http://127.0.0.1:{free}", "any", 1, "127.0.0.1, port"),
        ("127.0.0.1:8265", "any", 2, "expected http://HOST:8265"),
    ],
)
def test_wrong_address_or_token_is_one_message(head, job_file, address, token, exit_code, message):
    argv = command(job_file(), (address or head.address).format(free=free_port()))
    known = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_TOKEN"}
    known |= {"RAY_AUTH_TOKEN": token} if token else {}
    failed = subprocess.run(argv, env=known, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert failed.returncode == exit_code
    assert message in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "not-the-token" not in failed.stderr


def test_relative_paths_are_refused(head, job_file):
    refused = submit(job_file(output={"path": "features"}), head)
    assert refused.returncode == 2
    assert "output.path: features is a relative path" in refused.stderr
