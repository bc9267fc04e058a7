"""Fixtures of all tests: the real MiniLM, tiny random models of every family, a reference model, object stores."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_BACKEND_LOG_LEVEL="fatal",
    AWS_EC2_METADATA_DISABLED="true",
    # Otherwise torch's threads spin while they wait, and take the cores from the other processes of the tests.
    OMP_WAIT_POLICY="PASSIVE",
    # Otherwise Ray ends a worker after one idle second, and the next test waits for the imports of a new one.
    RAY_num_workers_soft_limit="8",
    RAY_idle_worker_killing_time_threshold_ms="60000",
)

import json
import signal
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from tests.crashing_model import make_killer
from tests.models import ARCHITECTURES, RELATED
from tests.servers.proxy import Control, proxy
from tests.servers.seaweed import seaweed_server
from tests.servers.stores import (
    azurite,
    empty_container,
    gcs,
    missing_server,
    moto,
    radosgw,
)
from varve.cli.corpus import model_folder

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup, the commands of tests would ignore it too
    signal.signal(signal.SIGHUP, lambda *_: None)

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# Files with a test or a fixture that runs whole jobs, servers or several commands: minutes on a busy machine.
LONG_FILES = {
    "test_backfill", "test_backfill_kills", "test_chaos", "test_commands", "test_computed_run", "test_contract",
    "test_demo", "test_embed", "test_examples", "test_failures", "test_faults", "test_further_sets", "test_fuzz",
    "test_hosts",
    "test_index", "test_lake_examples", "test_local_ray", "test_manners", "test_map", "test_monitoring",
    "test_probe_pairs", "test_probe_run", "test_publish_output", "test_resume", "test_search", "test_search_examples",
    "test_slurm", "test_stop", "test_stores", "test_submit", "test_wheel",
}  # fmt: skip
LONG_TIMEOUT_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in LONG_FILES and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S))


@pytest.fixture(scope="session")
def minilm() -> str:
    return str(model_folder())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, minilm):
    """(architecture, changes of its configuration) → folder of a tiny random model with the tokenizer of MiniLM."""
    folders: dict[tuple, str] = {}

    def make(name: str, *, labels: int = 0, **changes) -> str:
        key = (name, labels, *sorted(changes.items()))
        if key not in folders:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(0)
            config = AutoConfig.for_model(name, **{**(ARCHITECTURES | RELATED)[name], **changes})
            if labels:
                config.num_labels = labels
                model = AutoModelForSequenceClassification.from_config(config)
            else:
                model = AutoModel.from_config(config)
            for parameter in model.parameters():  # including biases and norms, which start at 0 and 1
                parameter.data.add_(torch.randn_like(parameter) * 0.05)
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
            folders[key] = str(folder)
        return folders[key]

    return make


@pytest.fixture(scope="session")
def declared(tmp_path_factory, minilm):
    """(name in `declared_checkpoints.SHAPES`, architecture) → folder of a tiny checkpoint that declares its vectors."""
    from tests.declared_checkpoints import SHAPES  # imports sentence-transformers: seconds
    from tests.tiny_bodies import Bodies

    bodies: dict[str, Bodies] = {}
    folders: dict[tuple[str, str], str] = {}

    def make(name: str, architecture: str = "bert") -> str:
        of_kind = bodies.setdefault(architecture, Bodies(tmp_path_factory.mktemp("declared"), minilm, architecture))
        if (name, architecture) not in folders:
            folders[name, architecture] = str(SHAPES[name].build(of_kind))
        return folders[name, architecture]

    return make


@pytest.fixture(scope="session")
def crashing_model(tiny):
    """The `model` section of a job whose checkpoint kills its process at one text."""
    folder = tiny("bert", intermediate_size=48)
    make_killer(folder)
    return {"name": folder, "max_tokens": 64, "trust_remote_code": True}


class Plain:
    """The reference: transformers with eager attention in float32, one text at a time."""

    def __init__(self, folder: str, auto=AutoModel) -> None:
        self.model = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def __call__(self, *texts: str, max_tokens: int = 128, **options):
        inputs = self.tokenizer(*texts, truncation=True, max_length=max_tokens, return_tensors="pt")
        return self.model(**inputs, output_hidden_states=True, **options)


@pytest.fixture(scope="session")
def plain():
    loaded: dict[tuple, Plain] = {}

    def load(folder: str, auto=AutoModel) -> Plain:
        return loaded.setdefault((folder, auto), Plain(folder, auto))

    return load


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """(name) → endpoint of an object store, started by its first use."""
    with ExitStack() as running:
        endpoints: dict[str, str] = {}

        def endpoint(name: str) -> str:
            if name not in endpoints:
                if name not in {"moto", "gcs"} and (missing := missing_server(name)):
                    pytest.skip(missing)
                serve = {"moto": moto, "gcs": gcs, "radosgw": radosgw, "azurite": azurite}[name]
                endpoints[name] = running.enter_context(serve(tmp_path_factory.mktemp(name)))
            return endpoints[name]

        yield endpoint


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory):
    """A running SeaweedFS: S3, Iceberg REST catalog, Lance namespace; its `environment()` is not set."""
    with seaweed_server(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def container(servers, monkeypatch):
    """(name of a server) → address of an empty bucket; its credentials are in the environment only."""
    return partial(empty_container, servers, monkeypatch)


@pytest.fixture(scope="session")
def faulty(servers, tmp_path_factory):
    """(name of an S3 server) → the control of a proxy in front of it, without faults."""
    with ExitStack() as running:
        controls: dict[str, Control] = {}

        def control(name: str) -> Control:
            if name not in controls:
                controls[name] = running.enter_context(proxy(servers(name), tmp_path_factory.mktemp("proxy")))
            controls[name].faults()
            return controls[name]

        yield control


@pytest.fixture
def read_only(servers):
    """(address of a bucket) → a context in which all writes to it are denied."""
    import boto3

    @contextmanager
    def deny(address: str):
        bucket = address.removeprefix("s3://")
        client = boto3.client("s3", endpoint_url=servers("radosgw"))
        statement = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["s3:PutObject"],
            "Resource": [f"arn:aws:s3:::{bucket}/*"],
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        yield
        client.delete_bucket_policy(Bucket=bucket)

    return deny
