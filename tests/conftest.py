"""Real parts for the tests: the real MiniLM, tiny random models of every family, and their own plain reference."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_BACKEND_LOG_LEVEL="fatal",
    AWS_EC2_METADATA_DISABLED="true",
)

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from jobs.corpus import model_folder
from tests.models import ARCHITECTURES

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def minilm() -> str:
    return str(model_folder())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, minilm):
    """A folder with a tiny random model of an architecture, and the BERT uncased tokenizer."""
    made: dict[tuple, str] = {}

    def make(name: str, *, labels: int = 0, **changes) -> str:
        key = (name, labels, *sorted(changes.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            config = AutoConfig.for_model(name, **{**ARCHITECTURES[name], **changes})
            if labels:
                config.num_labels = labels
                model = AutoModelForSequenceClassification.from_config(config)
            else:
                model = AutoModel.from_config(config)
            for parameter in model.parameters():  # biases and norms too, so that none hides behind a zero
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
            made[key] = str(folder)
        return made[key]

    return make


class Plain:
    """The reference: plain transformers, eager, fp32, one text at a time."""

    def __init__(self, folder: str, auto=AutoModel) -> None:
        self.model = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def __call__(self, *texts: str, max_tokens: int = 128, **wanted):
        inputs = self.tokenizer(*texts, truncation=True, max_length=max_tokens, return_tensors="pt")
        return self.model(**inputs, output_hidden_states=True, **wanted)


@pytest.fixture(scope="session")
def plain():
    loaded: dict[tuple, Plain] = {}

    def load(folder: str, auto=AutoModel) -> Plain:
        return loaded.setdefault((folder, auto), Plain(folder, auto))

    return load


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory):
    """A moto server on a free port of the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    server = subprocess.Popen(
        [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )
    endpoint = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
            break
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                server.kill()
                msg = f"moto did not answer at {endpoint} within 60 s"
                raise TimeoutError(msg) from None
            time.sleep(0.1)  # polls with a deadline
    yield endpoint
    server.terminate()
    server.wait(timeout=10)


@pytest.fixture
def bucket(s3_endpoint, monkeypatch):
    """An empty bucket, with its credentials in the environment alone."""
    import boto3

    for variable, value in {
        "AWS_ACCESS_KEY_ID": "AKTEST",
        "AWS_SECRET_ACCESS_KEY": "SKTEST-not-to-be-seen",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint,
    }.items():
        monkeypatch.setenv(variable, value)
    client = boto3.client("s3")
    name = f"bucket-{time.monotonic_ns()}"
    client.create_bucket(Bucket=name)
    return name
