"""Placement of replicas on described clusters."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varve.cluster.nodes import Cluster, Node
from varve.cluster.placement import IO_CPUS, LEAST_CPUS, place_workers
from varve.config.compute import Compute
from varve.errors import JobError


def cluster(*nodes: tuple) -> Cluster:
    described = tuple(Node(str(number), f"10.0.0.{number}", *node) for number, node in enumerate(nodes))
    return Cluster(described, sum(node.cpus for node in described), sum(node.gpus for node in described))


def compute(**keys) -> Compute:
    return Compute.model_validate(keys)


@pytest.mark.parametrize(
    ("nodes", "replicas", "threads"),
    [
        ([(2,)], 1, 2),
        ([(16,)], 2, 8),
        ([(12,)], 2, 6),
        ([(2,), (2,), (2,)], 3, 2),
        ([(2,), (64,), (64,)], 16, 8),
        ([(4,), (6,)], 5, 2),
    ],
)
def test_cpu_replicas_have_a_size_that_fits_every_node(nodes, replicas, threads):
    placement = place_workers(cluster(*nodes), compute())
    assert (placement.replicas, placement.threads) == (replicas, threads)
    assert placement.device == "cpu"


@pytest.mark.parametrize("free", [LEAST_CPUS, 0.95, 0.99])
def test_node_with_less_than_one_free_core_gets_one_replica_that_fits(free):
    placement = place_workers(replace(cluster((4,)), free_cpus=free), compute())
    assert (placement.replicas, placement.most_replicas, placement.threads) == (1, 1, 1)
    assert 0 < placement.cpus <= free - 2 * IO_CPUS


def test_every_gpu_gets_a_replica_with_its_share_of_the_cores_of_its_node():
    placement = place_workers(cluster((16, 4, "A10G"), (32,)), compute())
    assert (placement.replicas, placement.gpus, placement.cpus, placement.threads) == (4, 1.0, 2.0, 4)
    alone = place_workers(cluster((16, 1, "H200")), compute())
    assert (alone.replicas, alone.cpus, alone.threads) == (1, 8.0, 16)


def test_replicas_on_gpus_leave_the_cores_that_other_programs_hold():
    placement = place_workers(replace(cluster((16, 1, "H200")), free_cpus=3.0), compute())
    assert (placement.cpus, placement.threads) == (1.0, 3)


@given(st.integers(1, 200), st.integers(1, 8), st.sampled_from([1.0, 0.5, 0.25]))
def test_nodes_with_gpus_keep_cpus_for_reads_and_writes(cores, gpus, each):
    placement = place_workers(cluster((cores, gpus, "H200")), compute(gpus=each))
    assert placement.replicas == gpus / each
    assert placement.cpus > 0
    assert placement.replicas * placement.cpus <= max(cores - 2 * IO_CPUS + 1e-9, 0.01 * placement.replicas)


def test_small_models_share_a_gpu():
    placement = place_workers(cluster((16, 4, "A10G")), compute(gpus=0.25))
    assert (placement.replicas, placement.gpus) == (16, 0.25)


def test_only_gpus_of_the_requested_type_are_used():
    nodes = cluster((8, 1, "L4"), (8, 2, "A100"))
    placement = place_workers(nodes, compute(accelerator="A100"))
    assert (placement.replicas, placement.accelerator) == (2, "A100")
    with pytest.raises(JobError, match=r"H100.*1 of type L4, 2 of type A100.*compute\.accelerator"):
        place_workers(nodes, compute(accelerator="H100"))


def test_job_with_zero_gpus_runs_on_cpus():
    placement = place_workers(cluster((8, 1, "L4")), compute(gpus=0))
    assert (placement.device, placement.gpus, placement.accelerator) == ("cpu", 0.0, None)


def test_gpus_of_an_autoscaler_need_a_number_of_replicas():
    placement = place_workers(cluster((2,)), compute(gpus=1, replicas=4))
    assert (placement.replicas, placement.gpus) == (4, 1.0)
    with pytest.raises(JobError, match=r"compute\.gpus"):
        place_workers(cluster((2,)), compute(gpus=1))


def test_pool_starts_at_its_minimum_and_can_grow_to_its_maximum():
    placement = place_workers(cluster((8,)), compute(replicas={"min": 2, "max": 20}))
    assert (placement.replicas, placement.most_replicas, placement.threads) == (2, 20, 4)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_every_node_keeps_cpus_for_reads_and_writes(cores):
    placement = place_workers(cluster(*[(count,) for count in cores]), compute())
    replicas = [count // placement.threads for count in cores]
    assert sum(replicas) == placement.replicas >= 1
    assert all(count - num * placement.cpus >= 2 * IO_CPUS - 1e-9 for count, num in zip(cores, replicas, strict=True))


@given(st.integers(1, 64), st.integers(1, 100))
def test_requested_number_of_replicas_fits_one_machine(cores, replicas):
    placement = place_workers(cluster((cores,)), compute(replicas=replicas))
    assert placement.replicas == replicas
    assert placement.cpus > 0
    assert replicas * placement.cpus <= max(cores, replicas * 0.01)
