"""Arguments that describe a job: a job file with `--set`, or the common settings as flags."""

import argparse
from collections.abc import Sequence
from typing import Any

from varve.config.feature_shorthand import parse_feature
from varve.config.job import Job
from varve.errors import JobError

_FLAGS = (
    "dataset", "data-files", "split", "text", "keep", "model", "role", "prompt", "max-tokens", "feature", "output",
)  # fmt: skip


def add_job_file(parser: argparse.ArgumentParser) -> None:
    """Add the job file and --set."""
    parser.add_argument("job", nargs="?", metavar="JOB.yaml", help="the job file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="settings",
        help="set a value of the job, for example model.max_tokens=128; repeatable",
    )


def add_job_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the job file, --set, and the flags for a job without a file."""
    add_job_file(parser)
    flags = parser.add_argument_group("instead of a job file")
    flags.add_argument(
        "--dataset", help="Hub id, folder, or builder of --data-files: parquet, json, csv, text, arrow, webdataset"
    )
    flags.add_argument("--data-files", action="append", metavar="URL", help="path or URL, with globs; repeatable")
    flags.add_argument("--split", help="split of the dataset (default: train)")
    flags.add_argument("--text", action="append", metavar="COLUMN", help="text column; given twice: sentence pairs")
    flags.add_argument("--keep", action="append", metavar="COLUMN", help="column to copy to the output; repeatable")
    flags.add_argument("--model", help="Hub id or folder of the encoder")
    flags.add_argument(
        "--role", choices=("none", "query", "document"), help="what the texts are, if the model declares roles"
    )
    flags.add_argument("--prompt", metavar="TEXT", help="text before each text, in place of the declared prompt")
    flags.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="most tokens of a text, special tokens included (default: the length that the model declares, else 512, "
        "or the model's maximum if lower)",
    )
    flags.add_argument(
        "--feature",
        action="append",
        metavar="NAME=POOL[@LAYERS][+OPTION]",
        help="for example embedding=mean@-1+normalize or cls=cls@0,6,12; repeatable (default: embedding=declared "
        "if the model declares its vectors, else embedding=mean)",
    )
    flags.add_argument("--output", metavar="PATH", help="folder or object store prefix")


def read_job(arguments: argparse.Namespace) -> Job:
    """Return the job that the arguments describe.

    Raises:
        JobError: a value is wrong, or the arguments describe no job or two.
    """
    given = _given(arguments)
    if arguments.job:
        if given:
            msg = f"a job file and --{next(iter(given))} were both given. Use --set to change values of a job file"
            raise JobError(msg)
        return Job.load(arguments.job, arguments.settings)
    absent = [f"--{name}" for name in ("dataset", "text", "model", "output") if name not in given]
    if absent:
        msg = f"give a job file, or all of --dataset, --text, --model and --output ({', '.join(absent)} missing)"
        raise JobError(msg)
    return Job.parse(_content(given), "command line", arguments.settings)


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    values = {name: getattr(arguments, name.replace("-", "_")) for name in _FLAGS}
    return {name: value for name, value in values.items() if value is not None}


def _content(given: dict[str, Any]) -> dict[str, Any]:
    """Return the flags as the content of a job file."""
    texts = given["text"]
    if len(texts) > 2:
        msg = f"--text was given {len(texts)} times: expected once for a text, twice for a sentence pair"
        raise JobError(msg)
    content: dict[str, Any] = {
        "source": {"dataset": given["dataset"], "text": texts if len(texts) > 1 else texts[0]},
        "model": {"name": given["model"]},
        "output": {"path": given["output"]},
    }
    content["source"] |= {key: given[key] for key in ("split", "keep") if key in given}
    if "data-files" in given:
        content["source"]["data_files"] = given["data-files"]
    content["model"] |= {key: given[key] for key in ("role", "prompt") if key in given}
    if "max-tokens" in given:
        content["model"]["max_tokens"] = given["max-tokens"]
    if "feature" in given:
        content["features"] = _features(given["feature"])
    return content


def _features(texts: Sequence[str]) -> dict[str, Any]:
    features: dict[str, Any] = {}
    for name, feature in map(parse_feature, texts):
        if name in features:
            msg = f"--feature {name} was given twice: each feature needs a different name"
            raise JobError(msg)
        features[name] = feature
    return features
