"""Credentials are refused wherever a job file can hold one; similar names and URLs are accepted."""

import json

import pytest

from varve.cli.main import run_command
from varve.config.job import Job
from varve.errors import JobError

SECRET = "SKTEST"
SIGNED = f"https://lake.example.com/a.csv?sv=2024&sig={SECRET}"


def parse(**sections: dict) -> Job:
    content = {
        "source": {"dataset": "csv", "data_files": "s3://lake/*.csv", "text": "body"},
        "model": {"name": "bert"},
        "output": {"path": "out"},
    }
    return Job.parse({name: section | sections.get(name, {}) for name, section in content.items()})


def error_of(**sections: dict) -> str:
    with pytest.raises(JobError, match="set it in the environment") as raised:
        parse(**sections)
    assert SECRET not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("key", ["options", "storage_options"])
@pytest.mark.parametrize(
    ("held", "place"),
    [
        ({"key": SECRET}, "'key'"),
        ({"secret": SECRET}, "'secret'"),
        ({"token": SECRET}, "'token'"),
        ({"account_key": SECRET}, "'account_key'"),
        ({"accountKey": SECRET}, "'accountKey'"),
        ({"sas_token": SECRET}, "'sas_token'"),
        ({"anon": False, "client_kwargs": {"aws_secret_access_key": SECRET}}, "'client_kwargs.aws_secret_access_key'"),
        ({"client_kwargs": {"headers": {"Authorization": SECRET}}}, "'client_kwargs.headers.Authorization'"),
        ({"client_kwargs": {"headers": [["X-Api-Key", SECRET]]}}, "'client_kwargs.headers[0]'"),
        ({"fallbacks": [{"anon": True}, {"password": 12345}]}, "'fallbacks[1].password'"),
        ({"token": {"private": SECRET}}, "'token'"),
        ({"endpoints": ["https://lake.example.com", f"https://me:{SECRET}@lake.example.com"]}, "'endpoints[1]'"),
        ({"data_dir": SIGNED}, "'data_dir'"),
    ],
)
def test_credential_in_options_is_refused_with_its_path_and_without_its_value(key, held, place):
    error = error_of(source={key: held})
    assert f"source.{key}: " in error
    assert place in error


@pytest.mark.parametrize(
    "url",
    [
        SIGNED,
        f"https://lake.example.com/a.csv?X-Amz-Expires=60&X-Amz-Signature={SECRET}",
        f"https://lake.example.com/a.csv?Expires=60&Signature={SECRET}",
        f"https://lake.example.com/a.csv?X%2DGoog%2DSignature={SECRET}",
        f"https://lake.example.com/a.csv?access_token={SECRET}",
        f"https://me:{SECRET}@lake.example.com/a.csv",
        f"https://{SECRET}@lake.example.com/a.csv",
        f"s3://AKIA:{SECRET}@lake/a.csv",
        f"zip://*.csv::https://me:{SECRET}@lake.example.com/a.zip",
    ],
)
def test_credential_in_any_url_of_the_job_is_refused(url):
    assert "source.data_files: " in error_of(source={"data_files": url})
    assert "source.data_files: the URL at '[1]'" in error_of(source={"data_files": ["s3://lake/a.csv", url]})
    assert "source.dataset: " in error_of(source={"dataset": url})
    assert "output.path: " in error_of(output={"path": url})
    assert "model.name: " in error_of(model={"name": url})


@pytest.mark.parametrize(
    "options",
    [
        {"sep": ";", "names": ["token", "key"], "usecols": ["key", "secret"]},
        {"na_values": {"token": ["-"], "secret": ["none"]}},
        {"filters": [["token", "==", "x"], ["key", "==", "y"]]},
        {"tokenizer": "bert", "num_tokens": 3, "sort_keys": "yes", "monkey": "ape", "signature_version": "s3v4"},
        {"token": True, "secret": None, "password": ""},
        {"date_format": "%H://%M", "comment": "?sig=1"},
    ],
)
def test_option_with_a_similar_name_is_accepted(options):
    assert parse(source={"options": options}).source.options == options


@pytest.mark.parametrize(
    "url",
    [
        "abfs://container@account.dfs.core.windows.net/a:b@c.csv",
        "github://org:repo@main/docs/*.csv",
        "hf://datasets/org/docs@refs%2Fconvert%2Fparquet/*.csv",
        "https://lake.example.com/a.csv?download=true&version=3",
        "s3://lake/year=?/key=3/*.csv",
        "sftp://me@lake.example.com/a.csv",
        "docs/a?.csv",
    ],
)
def test_url_without_a_credential_is_accepted(url):
    assert parse(source={"data_files": url}).source.locations == (url,)


def test_command_does_not_print_a_credential(tmp_path, capsys):
    (tmp_path / "job.yaml").write_text(json.dumps(parse().model_dump(mode="json")))
    assert (
        run_command(["embed", str(tmp_path / "job.yaml"), "--dry-run", "--set", f"source.options.token={SECRET}"]) == 2
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert SECRET not in captured.err
