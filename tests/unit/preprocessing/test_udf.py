"""The user's code: found next to the job file or on the Python path, hashed without being run, run from its text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from varve.errors import JobError
from varve.preprocessing.udf.discovery import find_code
from varve.preprocessing.udf.loader import load

ROOT = Path(__file__).parents[3]


@pytest.fixture
def write(tmp_path):
    def files(**texts: str) -> str:
        for name, text in texts.items():
            path = tmp_path.joinpath(*name.split("__"))
            path.parent.mkdir(exist_ok=True, parents=True)
            path.with_suffix(".py").write_text(text)
        return str(tmp_path)

    return files


def find(folder: str, python: str = "mine:f"):
    return find_code(python, folder, "features.a.python")


def test_module_is_hashed_with_its_neighbours_and_not_run(write):
    folder = write(mine="import neighbour\nraise SystemExit", neighbour="x = 1", stranger="x = 1")
    first = find(folder)
    assert [module.name for module in first.modules] == ["mine", "neighbour"]
    write(stranger="x = 2")
    assert find(folder) == first
    write(neighbour="x = 2")
    assert find(folder).sha256 != first.sha256


def test_neighbours_are_found_in_functions_packages_and_relative_imports(write):
    folder = write(
        kit__mine="def f(rows):\n    from . import near\n    from kit.deep.far import g\n    return near.one + g()",
        kit__near="one = 1",
        kit__deep__far="from ..near import one\ndef g(): return one",
    )
    code = find(folder, "kit.mine:f")
    assert [module.name for module in code.modules] == ["kit.deep.far", "kit.mine", "kit.near"]
    assert load(code, "")(None) == 2


def test_code_runs_without_its_files(write, tmp_path):
    """As on another node, which receives only the text."""
    import pickle

    code = find(write(mine="from neighbour import f", neighbour="def f(rows): return rows + __name__"))
    program = (
        "import pickle, sys; from varve.preprocessing.udf.loader import load;"
        "print(load(pickle.load(sys.stdin.buffer), '')('in '))"
    )
    for path in tmp_path.glob("*.py"):
        path.unlink()
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(code), capture_output=True, check=False)
    assert done.stdout.decode() == "in neighbour\n", done.stderr.decode()


def test_module_on_the_python_path_is_found_and_the_folder_of_the_job_comes_first(write, tmp_path, monkeypatch):
    write(path__only_there="def f(rows): return 1")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    assert load(find(str(tmp_path / "job"), "only_there:f"), "")(None) == 1


def test_module_that_is_a_link_is_loaded_from_the_folder_of_the_job(write, tmp_path, monkeypatch):
    write(lib__linked="from near_link import f", lib__near_link="def f(rows): return 3")
    job = tmp_path / "job"
    job.mkdir()
    for name in ("linked.py", "near_link.py"):
        (job / name).symlink_to(tmp_path / "lib" / name)
    assert load(find(str(job), "linked:f"), "")(None) == 3
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))  # the same files again, so there is no other module
    assert find(str(job), "linked:f").modules


def test_module_that_the_program_imported_through_a_link_is_accepted(write, tmp_path):
    write(lib__seen="def f(rows): return 4")
    (tmp_path / "job").mkdir()
    (tmp_path / "job/seen.py").symlink_to(tmp_path / "lib/seen.py")
    program = (
        "import seen; from varve.preprocessing.udf.discovery import find_code;"
        "from varve.preprocessing.udf.loader import load;"
        "print(load(find_code('seen:f', '.', ''), '')(None))"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path / "job", env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "4\n", done.stderr


def test_installed_function_is_imported_by_its_name(tmp_path):
    code = find(str(tmp_path), "pyarrow.compute:utf8_length")
    assert code.modules == ()
    assert load(code, "")(["four"])[0].as_py() == 4


def test_changed_text_is_another_function_in_the_same_process(write):
    old = find(write(mine="from neighbour import f", neighbour="def f(rows): return 'old'"))
    assert load(old, "")(None) == "old"
    new = find(write(neighbour="def f(rows): return 'new'"))
    assert load(new, "")(None) == "new"
    assert load(old, "")(None) == "old"


@pytest.mark.parametrize(
    ("text", "python", "fragments"),
    [
        ("", "nowhere:f", ["'nowhere'", "searched nowhere.py in"]),
        ("", "no.where:f", ["'no.where'", "no/where.py"]),
        ("def g(rows): ...", "mine:f", ["mine.py has no function 'f'", ": g"]),
        ("f = 3", "mine:f", ["has no function 'f'", "int"]),
        ("def f(a, b): ...", "mine:f", ["mine:f(a, b)", "one argument", "RecordBatch"]),
        ("def f(*, rows): ...", "mine:f", ["mine:f(*, rows)"]),
        ("def f(:", "mine:f", ["mine.py is not valid Python", "SyntaxError"]),
        ("x = 1\nx / 0", "mine:f", ["ZeroDivisionError", "(mine.py, line 2)"]),
        ("import not_there", "mine:f", ["No module named 'not_there'"]),
        ("raise SystemExit(3)", "mine:f", ["SystemExit: 3"]),
        ("import json", "json:f", ["json.py has the name of another module", "rename yours"]),
    ],
)
def test_errors_of_user_code_name_the_key_and_the_place(text, python, fragments, write):
    folder = write(mine=text, json="def f(rows): ...")
    with pytest.raises(JobError) as error:
        load(find(folder, python), "features.a.python")
    assert str(error.value).startswith("features.a.python: ")
    for fragment in fragments:
        assert fragment in str(error.value)


def test_neighbour_with_the_name_of_an_installed_module_is_refused(write):
    with pytest.raises(JobError, match=r"numpy\.py has the name of another module"):
        find(write(mine="import numpy", numpy=""))
