import pickle

import pytest

from varve.errors import JobError, RunError, VarveError, first_line, one_line


@pytest.mark.parametrize("kind", [VarveError, JobError, RunError])
def test_error_can_be_pickled(kind):
    copy = pickle.loads(pickle.dumps(kind("the message")))
    assert type(copy) is kind
    assert str(copy) == "the message"
    assert copy.exit_code == kind.exit_code


@pytest.mark.parametrize(
    ("error_or_text", "limit", "line"),
    [
        ("  one\n\ttwo ", 300, "one two"),
        (ValueError("a\nb"), 300, "a b"),
        ("x" * 9, 4, "xxxx"),
        ("x" * 9, None, "x" * 9),
    ],
)
def test_one_line(error_or_text, limit, line):
    assert one_line(error_or_text, limit) == line


@pytest.mark.parametrize(
    ("error", "line"),
    [(OSError("\nNot found:\nset A"), "Not found"), (OSError("a.b. "), "a.b"), (OSError(), "OSError")],
)
def test_first_line(error, line):
    assert first_line(error) == line
