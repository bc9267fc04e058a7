"""One scenario of the chaos command, so that it does not rot."""

import subprocess
import sys

from tests.waiting import RUN_S

# A build of npy files on a disk: the driver is stopped and killed, and a second one runs at the same time.
SCENARIO = ["--seed", "22", "--kind", "npy", "--store", "disk", "--ray", "local"]


def test_scenario_of_chaos_ends_with_the_result_of_an_undisturbed_build():
    command = [sys.executable, "-m", "tests.faults.chaos", *SCENARIO]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " driver killed" in done.stdout
    assert done.stdout.endswith("0 rows lost, 0 doubled, every value equal to the undisturbed run\n")
