"""What comes from outside: cases of earlier findings, and some hundred changes of each kind of file, are refused well.

The command `python -m tests.fuzz` runs the same for as long as one likes.
"""

import pytest

from tests.fuzz.campaign import fuzz
from tests.fuzz.case import FINE, found_cases
from tests.fuzz.targets import TARGETS

CASES = 60  # of each target
SECONDS = 12.0  # of all together
FOUND = [(target, name) for target in TARGETS for name in found_cases(target)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return fuzz(list(TARGETS), tmp_path_factory.mktemp("fuzz"), seed=0, cases=CASES, seconds=SECONDS)


@pytest.mark.parametrize("target", TARGETS)
def test_changed_files_are_accepted_or_refused_by_a_message(target, results):
    findings = {key: details for key, (details, case) in results.findings.items() if case.target == target}
    assert not findings
    assert sum(results.counts[target].values()) > 0


@pytest.mark.parametrize(("target", "name"), FOUND)
def test_case_of_an_earlier_finding_is_accepted_or_refused_by_a_message(target, name, results):
    assert target in results.counts
    assert results.replayed[name] in FINE
