"""Job files of absurd size, depth or kind are refused in one line and within seconds."""

import os
import time

import pytest

from varve.config.job import Job
from varve.config.yaml_text import parse_yaml, read_yaml_file
from varve.errors import JobError

LAUGHS = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
LAUGHS += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 11)]
MERGES = ["a0: &a0 {k: v}"]
MERGES += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 11)]


def refusal(read) -> str:
    began = time.monotonic()
    with pytest.raises(JobError) as error:
        read()
    assert time.monotonic() - began < 30
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("\n".join(LAUGHS), r"job.yaml: is not YAML: it has more than 100,000 values (line 5"),
        ("\n".join(MERGES), "it has more than 100,000 values"),
        ("a: [" + "b, " * 200_000 + "]", "it has more than 100,000 values"),
        ("[" * 100_000, "it is nested more than 50 levels deep"),
        ("- " * 100_000, "it is nested more than 50 levels deep"),
        ("{a: " * 100_000, "it is nested more than 50 levels deep"),
        ("a: &a {b: *a}", "the alias a is within its own anchor (line 1, column 11)"),
        ("a: 0x" + "f" * 900_000, "a number or date has more than 1,000 characters"),
        ("a: 1" + ":1" * 400_000, "a number or date has more than 1,000 characters"),
        ("a: !!binary aGVsbG8=", "the tag !!binary is not used in job files"),
        ("a: !!set {b, c}", "the tag !!set is not used in job files"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("? [a, b]\n: c", "is not YAML"),
        (b"\x00\x01\x02\x7fELF", "is not YAML"),
        (b"\xff\xfe\x00", "is not UTF-8: byte 0 is 0xff"),
        (" " * (2**20 + 1), "is larger than 1 MiB"),
    ],
    ids=range(16),
)
def test_absurd_content_is_refused(content, expected, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert expected in refusal(lambda: Job.load(str(path)))


def test_what_is_not_a_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, expected in {
        "": "is a folder",
        "pipe": "is a pipe or a device",
        "zero": "is a pipe or a device",
        "a": "cannot be read: Too many levels of symbolic links",
        "x" * 300: "cannot be read: File name too long",
        "\0": "cannot be read: ",
    }.items():
        assert expected in refusal(lambda name=name: Job.load(f"{tmp_path}/{name}"))


def test_pipe_of_the_shell_is_read():
    reading, writing = os.pipe()
    os.write(writing, b"a: 1")
    os.close(writing)
    assert read_yaml_file(f"/dev/fd/{reading}") == {"a": 1}
    os.close(reading)


def test_aliases_of_usual_size_are_read():
    assert parse_yaml("a: &a {b: [1, 2]}\nc: [*a, *a]", "job")["c"] == [{"b": [1, 2]}] * 2


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("source.options=" + "[" * 1000, "--set source.options: is not YAML: it is nested more than 50 levels deep"),
        ("source.options." + ".".join("a" * 100) + "=1", "the key has more than 50 levels"),
        ("source.options={a: &a [*a]}", "is within its own anchor"),
        ("source={2024-01-01: x}", "--set"),
    ],
)
def test_absurd_setting_is_refused(setting, expected):
    content = {"source": {"dataset": "d", "text": "t"}, "model": {"name": "m"}, "output": {"path": "p"}}
    if expected == "--set":  # an error of the job, not of the setting
        with pytest.raises(JobError, match=r"source\.datetime.* expected text as a key"):
            Job.parse(content, settings=[setting])
    else:
        assert expected in refusal(lambda: Job.parse(content, settings=[setting]))


def test_messages_stay_short_whatever_the_value(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("model: [" + "x, " * 50_000 + "]\nsource: {keep: [" + "1, " * 1000 + "]}")
    with pytest.raises(JobError) as error:
        Job.load(str(path))
    lines = str(error.value).splitlines()
    assert len(lines) <= 21
    assert "more errors" in lines[-1]
    assert max(map(len, lines)) < 500
