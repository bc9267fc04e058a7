"""Loaders of a Qdrant index and the server are killed; the published points are those of an undisturbed build."""

import multiprocessing
import random
import signal
import uuid

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from tests.faults.qdrant_build import run_build
from tests.index_sources import open_source, write_source
from tests.servers.qdrant import qdrant
from varve.indexing.qdrant.qdrant_target import QdrantTarget

ROWS = 700
SEEDS = range(20)
DEATHS_PER_SEED = 2  # of builders that run at once
SERVER_KILLS = range(2)


@pytest.fixture(scope="module")
def context():
    """Starts processes in milliseconds: they are forked from a server that has the modules and no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.qdrant_build", "qdrant_client"])
    return context


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_source(tmp_path_factory.mktemp("source") / "run", ROWS)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with qdrant(tmp_path_factory.mktemp("qdrant")) as running:
        yield running


def points_of(server, name: str) -> dict:
    """id → (payload, vector) of all points."""
    client = QdrantClient(url=f"http://{server.host}", check_compatibility=False)
    points, following = client.scroll(name, limit=2 * ROWS, with_vectors=True)
    assert following is None
    assert client.count(name, exact=True).count == len(points)
    return {point.id: (point.payload, point.vector) for point in points}


@pytest.fixture(scope="module")
def undisturbed(server, path):
    """(number of requests, points) of a build without a break."""
    num_requests = run_build(path, f"{server.address}/undisturbed")
    return num_requests, points_of(server, "undisturbed")


def run_together(context, path: str, to: str, builders: list) -> list[int]:
    """Run one process per (seed, request at which it ends) at once; returns their exit codes."""
    processes = [context.Process(target=run_build, args=(path, to, *builder)) for builder in builders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_undisturbed_points_are_the_rows_of_the_source(undisturbed, path):
    source = open_source(path)
    by_position = {payload["position"]: vector for payload, vector in undisturbed[1].values()}
    assert sorted(by_position) == list(range(source.num_vectors))
    stored = np.array([by_position[position] for position in range(source.num_vectors)], np.float32)
    assert np.array_equal(stored, source.dense_at(np.arange(source.num_vectors)))


@pytest.mark.parametrize("seed", SEEDS)
def test_killed_loaders_publish_the_points_of_an_undisturbed_build(server, context, path, undisturbed, seed):
    num_requests, expected = undisturbed
    to, draw = f"{server.address}/seed-{seed}", random.Random(seed)
    deaths = sorted(draw.sample(range(1, num_requests), DEATHS_PER_SEED))
    exits = run_together(context, path, to, [(seed, deaths[0]), (seed + 100, deaths[1])])
    assert -signal.SIGKILL in exits, exits  # the other one may have fewer requests to make
    assert run_together(context, path, to, [(seed, None)]) == [0]
    assert points_of(server, f"seed-{seed}") == expected
    target = QdrantTarget(to.removeprefix("qdrant://"))
    record = target.published()
    assert record is not None
    assert target.verify(record) == []


@pytest.mark.parametrize("seed", SERVER_KILLS)
def test_loader_survives_kills_of_the_server(tmp_path, context, path, undisturbed, seed):
    draw = random.Random(seed)
    with qdrant(tmp_path / "server") as server:
        loader = context.Process(target=run_build, args=(path, f"{server.address}/docs"))
        loader.start()
        for _ in range(2):
            loader.join(draw.uniform(0.1, 0.8))
            server.kill()
            server.start()
        loader.join()
        assert loader.exitcode == 0
        assert points_of(server, "docs") == undisturbed[1]


def test_control_points_without_ids_of_their_rows_are_doubled(server, path):
    """What a loader does that lets the server choose the ids, and adds all parts after a kill."""
    client = QdrantClient(url=f"http://{server.host}", check_compatibility=False)
    client.create_collection("control", vectors_config=models.VectorParams(size=32, distance=models.Distance.DOT))
    source = open_source(path)
    for parts in (range(3), range(source.num_parts)):
        for part in parts:
            rows = source.read(part)
            ids: list = [str(uuid.uuid4()) for _ in range(len(rows))]
            payloads = [{"position": int(position)} for position in rows.positions]
            if len(rows):
                client.upsert("control", models.Batch(ids=ids, vectors=list(rows.dense), payloads=payloads))
    assert client.count("control").count == source.num_vectors + int(source.starts[3])
