"""Object stores: Ceph's S3 gateway (real credentials and conditional writes), Azurite, and moto, a fast emulator.

Google's client is tested against moto too: its XML API is that of S3 except for the header of a condition, which a
proxy translates. Clients find a server by the environment variables that `*_environment` returns.
"""

import base64
import hmac
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.servers.processes import answers, end, free_port, free_ports, start
from tests.servers.proxy import proxy
from tests.waiting import wait_until

ACCESS_KEY, SECRET_KEY = "AKTEST", "SKTEST-not-to-be-seen"
AZURE_ACCOUNT = "devstoreaccount1"
# Azurite's public default key.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURITE = Path(__file__).parent / "node_modules/.bin/azurite-blob"

_CEPH = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_old}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
auth allow insecure global id reclaim = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
mon allow pool size one = true
mon warn on pool no redundancy = false
osd crush chooseleaf type = 0
mon max pg per osd = 1000
run dir = {folder}/out
log file = {folder}/out/$name.log
admin socket = {folder}/out/$name.asok
pid file = {folder}/out/$name.pid
setuser match path = /
[mon.a]
mon data = {folder}/mon
mon data avail crit = 1
mon data avail warn = 1
[osd]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 8589934592
osd class load list = *
osd class default list = *
osd scrub load threshold = 2000
osd memory target = 939524096
[client.rgw]
ms mon client mode = crc
ms client mode = crc
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dns name = localhost
rgw enable usage log = false
rgw enable ops log = false
rgw run sync thread = false
rgw gc max objs = 3
rgw gc obj min wait = 5
rgw gc processor period = 10
rgw gc processor max time = 10
rgw lc max objs = 3
"""


def s3_environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_bucket(endpoint: str, name: str) -> None:
    import boto3

    keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY, "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=name)


def azure_environment(endpoint: str) -> dict[str, str]:
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        "AZURE_STORAGE_ENDPOINT": f"{endpoint}/{AZURE_ACCOUNT}",
    }


def gcs_environment(endpoint: str) -> dict[str, str]:
    return {"GOOGLE_BASE_URL": endpoint, "GOOGLE_BEARER_TOKEN": SECRET_KEY}


def make_container(endpoint: str, name: str) -> None:
    """Create a container by a signed request; Azure's client would be a large dependency for one call."""
    now = formatdate(usegmt=True)
    headers = f"x-ms-date:{now}\nx-ms-version:2021-12-02"
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    signed = f"PUT\n\n\n\n\n\n\n\n\n\n\n\n{headers}\n{resource}"
    signature = base64.b64encode(hmac.digest(base64.b64decode(AZURE_KEY), signed.encode(), "sha256")).decode()
    request = urllib.request.Request(f"{endpoint}/{AZURE_ACCOUNT}/{name}?restype=container", method="PUT")
    request.add_header("x-ms-date", now)
    request.add_header("x-ms-version", "2021-12-02")
    request.add_header("Authorization", f"SharedKey {AZURE_ACCOUNT}:{signature}")
    request.add_header("Content-Length", "0")
    urllib.request.urlopen(request, timeout=30).close()


def empty_container(
    servers: Callable[[str], str], environment: pytest.MonkeyPatch, name: str, endpoint: str | None = None
) -> str:
    """Create a bucket and return its address; its credentials are in the environment only.

    Args:
        servers: name → endpoint of a server.
        environment: takes the variables for clients.
        name: of the server.
        endpoint: that clients use, for instance of a proxy; None for the server's.
    """
    server_endpoint = servers(name)
    bucket = f"bucket-{time.monotonic_ns()}"
    kinds = {"azurite": (azure_environment, "az", make_container), "gcs": (gcs_environment, "gs", make_bucket)}
    variables, scheme, make = kinds.get(name, (s3_environment, "s3", make_bucket))
    for variable, value in variables(endpoint or server_endpoint).items():
        environment.setenv(variable, value)
    make(server_endpoint, bucket)
    return f"{scheme}://{bucket}"


def missing_server(name: str) -> str | None:
    """Why a server cannot be started on this machine; None if it can."""
    is_installed = {"radosgw": shutil.which("radosgw"), "azurite": AZURITE.exists()}[name]
    return None if is_installed else f"{name} is not installed: run `make servers` (Debian packages, npm)"


@contextmanager
def radosgw(folder: Path) -> Iterator[str]:
    """Ceph with one process of each kind and its data in memory; yields the gateway's endpoint."""
    for name in ("mon", "osd", "out"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    conf, log = folder / "ceph.conf", folder / "out/start.log"
    mon, mon_old, port = free_ports(3)
    fsid = str(uuid.uuid4())
    conf.write_text(_CEPH.format(fsid=fsid, mon=mon, mon_old=mon_old, port=port, folder=folder))

    def call(*command: str, timeout: float = 60) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        with log.open("a") as log_file:
            log_file.write(f"{command} {done.returncode}\n{done.stderr}\n")
        return done.stdout

    def ceph(*arguments: str) -> str:
        try:
            return call("ceph", "-c", str(conf), "--connect-timeout", "2", *arguments, timeout=5)
        except subprocess.TimeoutExpired:
            return ""

    processes: list[subprocess.Popen] = []

    def serve(*command: str) -> None:
        processes.append(start(command, log))

    try:
        address = f"[v2:127.0.0.1:{mon},v1:127.0.0.1:{mon_old}]"
        call("monmaptool", "--create", "--clobber", "--addv", "a", address, "--fsid", fsid, str(folder / "monmap"))
        call("ceph-mon", "-c", str(conf), "--mkfs", "-i", "a", "--monmap", str(folder / "monmap"))
        serve("ceph-mon", "-c", str(conf), "-i", "a", "-f")
        wait_until(lambda: "quorum" in ceph("quorum_status"), "ceph-mon", log)
        osd = str(uuid.uuid4())
        ceph("osd", "new", osd)
        call("ceph-osd", "-c", str(conf), "-i", "0", "--mkfs", "--osd-uuid", osd)
        ceph("osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        serve("ceph-osd", "-c", str(conf), "-i", "0", "-f")
        wait_until(lambda: "1 up" in ceph("osd", "stat"), "ceph-osd", log)
        serve("radosgw", "-c", str(conf), "-n", "client.rgw", "-f")
        endpoint = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(endpoint), "radosgw", log)
        user = ["--uid=test", "--display-name=test", f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"]
        user_json = call("radosgw-admin", "-c", str(conf), "user", "create", *user)
        assert json.loads(user_json)["user_id"] == "test"
        yield endpoint
    finally:
        end(processes)


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Microsoft's emulator of Azure's blob store; yields its endpoint."""
    port, log = free_port(), folder / "azurite.log"
    command = [str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    process = start([*command, "--silent", "--skipApiVersionCheck", "--disableTelemetry"], log, env={**os.environ})
    endpoint = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(endpoint), "azurite", log)
        yield endpoint
    finally:
        end([process])


@contextmanager
def moto(folder: Path) -> Iterator[str]:
    """An emulator of S3 in Python that starts fast and accepts all credentials; yields its endpoint."""
    port, log = free_port(), folder / "moto.log"
    process = start([str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], log)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(endpoint), "moto", log)
        yield endpoint
    finally:
        end([process])


@contextmanager
def gcs(folder: Path) -> Iterator[str]:
    """An emulator of Google's store that accepts all credentials; yields its endpoint."""
    with moto(folder) as endpoint, proxy(endpoint, folder) as control:
        yield control.endpoint
