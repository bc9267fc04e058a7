import pickle

import pytest

from pipeline.errors import JobError, RunError, VarveError


@pytest.mark.parametrize("kind", [VarveError, JobError, RunError])
def test_error_survives_the_way_out_of_a_worker(kind):
    copy = pickle.loads(pickle.dumps(kind("what went wrong")))
    assert type(copy) is kind
    assert str(copy) == "what went wrong"
    assert copy.exit_code == kind.exit_code
