"""`embed` in a user's program leaves the state of the process as it found it."""

import json
import subprocess
import sys

import pyarrow as pa
import pytest

PROGRAM = """
import gc, json, logging, os, signal, sys, threading, warnings

import datasets, ray.data, transformers
from varve import Job, RunError, embed

LIBRARIES = ("", "ray", "ray.data", "transformers", "datasets", "varve")


def state():
    return {
        "levels": {name: logging.getLogger(name).level for name in LIBRARIES},
        "handlers": {name: len(logging.getLogger(name).handlers) for name in LIBRARIES},
        "bars": [transformers.logging.is_progress_bar_enabled(), datasets.utils.logging.is_progress_bar_enabled()],
        "gc": [gc.isenabled(), gc.get_threshold()],
        "warnings": [str(each) for each in warnings.filters],
        "signals": [str(signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "wakeup": signal.set_wakeup_fd(-1),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "threads": sorted(each.name for each in threading.enumerate() if each.name.startswith("Thread")),
    }


def difference(before, after):
    if isinstance(before, dict):
        keys = {*before, *after}
        return {key: [before.get(key), after.get(key)] for key in keys if before.get(key) != after.get(key)}
    return [before, after]


def run(content):
    try:
        embed(Job.parse(content))
    except RunError as e:
        return str(e)
    return "finished"


finished, failed, slow = map(json.loads, sys.argv[1:])
transformers.logging.set_verbosity_info()
datasets.logging.set_verbosity_warning()
logging.getLogger("ray").setLevel(logging.WARNING)
logging.getLogger("ray.data").setLevel(logging.INFO)
signal.signal(signal.SIGTERM, lambda *_: None)
gc.freeze()

# Sends SIGINT 2 s after the run's first message, when its replicas start or encode.
class InterruptAfterStart(logging.Handler):
    def emit(self, record):
        if record.name == "varve.driver.job_run" and self.is_armed:
            self.is_armed = False
            self.timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
            self.timer.start()


interrupt = InterruptAfterStart()
interrupt.is_armed = False
logging.getLogger("varve").addHandler(interrupt)
logging.getLogger("varve").setLevel(logging.INFO)
results = {}
for name, content in (("finished", finished), ("failed", failed), ("interrupted", slow)):
    before, frozen = state(), gc.get_freeze_count()
    interrupt.is_armed = name == "interrupted"
    outcome = run(content)
    if name == "interrupted":
        interrupt.timer.join()
    after = state()
    grown = gc.get_freeze_count() > frozen
    changed = {"frozen": True} if grown else {}
    changed |= {key: difference(before[key], after[key]) for key in before if before[key] != after[key]}
    results[name] = {"outcome": outcome, "changed": changed}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory, write_shards, minilm):
    """Run (finished, failed, interrupted) → its outcome, and what it changed in the process; stderr of the process."""
    folder = tmp_path_factory.mktemp("manners")
    few = write_shards(folder / "few", [pa.table({"text": ["one text", None, "another"]})])
    many = write_shards(folder / "many", [pa.table({"text": ["one text of many words " * 20] * 20_000})])

    def job(output, source, **output_options):
        return json.dumps(
            {
                "source": {"dataset": str(source), "text": "text"},
                "model": {"name": minilm, "max_tokens": 128},
                "output": {"path": str(folder / output), **output_options},
            }
        )

    nulls = write_shards(folder / "nulls", [pa.table({"text": pa.array([None] * 3, pa.string())})])
    jobs = [job("finished", few), job("failed", nulls), job("interrupted", many, rows_per_part=64)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *jobs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


@pytest.mark.parametrize("name", ["finished", "failed", "interrupted"])
def test_run_leaves_the_process_as_it_found_it(name, ended):
    assert ended[name]["changed"] == {}


def test_runs_ended_as_their_names_say(ended):
    assert ended["finished"]["outcome"] == "finished"
    assert "none of 3 rows has features" in ended["failed"]["outcome"]
    assert "SIGINT" in ended["interrupted"]["outcome"]


def test_run_writes_no_messages_of_ray_to_stderr(ended):
    assert "core_worker" not in ended["stderr"]
