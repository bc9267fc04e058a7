import pytest

from tests.faults.kill import disturb


@pytest.mark.timeout(600)
def test_driver_killed_twice_ends_with_the_rows_of_an_undisturbed_run(tmp_path):
    disturb(tmp_path, kills=2, seed=7, rows=400, rows_per_part=20)
