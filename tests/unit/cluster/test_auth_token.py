"""The token of a local Ray can be read by its user only."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from varve.cluster.auth_token import make_token_private

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that the value of the test is removed after it
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_new_token_is_private(home):
    make_token_private()
    assert len((home / ".ray/auth_token").read_text()) == 64
    assert (mode(home / ".ray"), mode(home / ".ray/auth_token")) == (0o700, 0o600)


def test_commands_that_start_at_the_same_time_have_one_token(home):
    def read_token(_: int) -> str:
        make_token_private()
        return (home / ".ray/auth_token").read_text()

    with ThreadPoolExecutor(8) as threads:
        tokens = set(threads.map(read_token, range(64)))
    assert [len(token) for token in tokens] == [64]
    assert [path.name for path in (home / ".ray").iterdir()] == ["auth_token"]


def test_token_that_ray_has_written_is_kept_and_becomes_private(home):
    (home / ".ray").mkdir()
    (home / ".ray/auth_token").write_text("a token")
    (home / ".ray/auth_token").chmod(0o644)
    make_token_private()
    assert mode(home / ".ray/auth_token") == 0o600
    assert (home / ".ray/auth_token").read_text() == "a token"


def test_home_folder_that_cannot_be_written_gets_a_token_in_the_environment(home, monkeypatch):
    (home / "file").touch()
    monkeypatch.setenv("HOME", str(home / "file"))
    make_token_private()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "the user's")])
def test_choice_of_the_user_is_kept(home, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    make_token_private()
    assert {each: os.environ[each] for each in VARIABLES if each in os.environ} == {name: value}
    assert not (home / ".ray").exists()
