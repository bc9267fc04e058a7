"""Files in infra/ and jobs/ are valid for Kubernetes, KubeRay, Ray, bash and Docker."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from varve.cli.main import run_command
from varve.config.job import Job

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
BIN = Path(sys.executable).parent  # the tools of the virtual environment may not be on the PATH
LOCK = (INFRA / "requirements.lock").read_text()
KUBERNETES = "1.34"
OBJECTS = {"ConfigMap", "NetworkPolicy", "ServiceAccount"}  # operators define the other kinds
SPOT = {
    "karpenter.sh/capacity-type",
    "eks.amazonaws.com/capacityType",
    "cloud.google.com/gke-spot",
    "kubernetes.azure.com/scalesetpriority",
}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted([*(INFRA / "kuberay").glob("*.yaml"), *(ROOT / "jobs/templates/kuberay").glob("*.yaml")]):
        for document in yaml.safe_load_all(path.read_text()):
            if "kind" in document:
                yield path.name, document


DOCUMENTS = list(documents())
CLUSTERS = {
    "job": next(d for _, d in DOCUMENTS if d["kind"] == "RayJob")["spec"]["rayClusterSpec"],
    "standing": next(d for _, d in DOCUMENTS if d["kind"] == "RayCluster")["spec"],
}
JOBS = [path for path in sorted((ROOT / "jobs/recipes").glob("*.yaml")) if not path.stem.startswith("index-")]


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Yield the spec of every pod in a document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


PODS = [pytest.param(pod, id=f"{file}-{at}") for file, document in DOCUMENTS for at, pod in enumerate(pods(document))]


def identify(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


@pytest.mark.parametrize("path", sorted(INFRA.rglob("*.yaml")), ids=lambda path: path.name)
def test_yaml_parses(path):
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("document", [d for _, d in DOCUMENTS if d["kind"] in OBJECTS], ids=identify)
def test_objects_are_valid_for_kubernetes(document):
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("pod", PODS)
def test_pods_are_valid_for_kubernetes(pod):
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, KUBERNETES, strict=True
    )


@pytest.mark.parametrize("pod", PODS)
def test_pods_run_unprivileged_and_write_only_to_volumes(pod):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {"/tmp", "/cache"} <= set(mounts)
        assert set(mounts.values()) == volumes
        assert {"cpu", "memory"} <= set(container["resources"]["limits"]) & set(container["resources"]["requests"])


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_shared_memory_fits_the_object_store_and_the_pod(cluster):
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        shm = next(volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm")
        assert shm["medium"] == "Memory"
        size = int(shm["sizeLimit"].removesuffix("Gi")) * 2**30
        memory = int(spec["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
        assert int(group["rayStartParams"]["object-store-memory"]) <= size <= memory // 3


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_head_avoids_spot_nodes_and_workers_prefer_them(cluster):
    head = cluster["headGroupSpec"]["template"]["spec"]
    required = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    assert {rule["key"] for rule in term["matchExpressions"] if rule["operator"] == "NotIn"} == SPOT
    assert "tolerations" not in head
    for group in cluster["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        preferred = spec["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
        assert {term["preference"]["matchExpressions"][0]["key"] for term in preferred} == SPOT
        tolerated = {toleration["key"] for toleration in spec["tolerations"]}
        assert {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"} <= tolerated
        # Ray drains for 30 s when its pod is terminated.
        assert spec["terminationGracePeriodSeconds"] > 30


def test_standing_cluster_equals_the_cluster_of_the_job():
    job, standing = (json.loads(json.dumps(CLUSTERS[name])) for name in ("job", "standing"))
    head = job["headGroupSpec"]["template"]["spec"]
    head["volumes"] = [volume for volume in head["volumes"] if "configMap" not in volume]
    container = head["containers"][0]
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "job"]
    assert job == standing


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_ray_has_the_locked_version_and_token_authentication(cluster):
    assert f"ray=={cluster['rayVersion']}\n" in LOCK
    assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("cluster", CLUSTERS.values(), ids=CLUSTERS)
def test_ray_autoscaler_accepts_the_cluster(cluster):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "x"}, "spec": cluster})
    types = config["available_node_types"]
    assert set(types) == {"headgroup", "gpu", "cpu"}
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in types["cpu"]["resources"]


def test_ray_job_is_retried_and_its_cluster_removed():
    ray_job = next(d for _, d in DOCUMENTS if d["kind"] == "RayJob")
    spec = ray_job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["submissionMode"] == "K8sJobMode"


def test_network_policy_and_pod_monitor_select_the_pods():
    labels = {"app.kubernetes.io/name": "varve"}
    policy = next(d for _, d in DOCUMENTS if d["kind"] == "NetworkPolicy")
    monitor = next(d for _, d in DOCUMENTS if d["kind"] == "PodMonitor")
    assert policy["spec"]["podSelector"]["matchLabels"] == monitor["spec"]["selector"]["matchLabels"] == labels
    ports: set[str] = set()
    for cluster in CLUSTERS.values():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert labels.items() <= group["template"]["metadata"]["labels"].items()
            ports |= {port["name"] for port in group["template"]["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports


def closed(schema: Any) -> Any:
    """Return the schema with unknown keys rejected; Kubernetes would drop them without an error."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.mark.skipif(
    "VARVE_KUBERAY_SCHEMAS" not in os.environ, reason="VARVE_KUBERAY_SCHEMAS is not set to a folder of CRD schemas"
)
@pytest.mark.parametrize("kind", ["RayJob", "RayCluster"])
def test_clusters_are_valid_for_kuberay(kind):
    (path,) = Path(os.environ["VARVE_KUBERAY_SCHEMAS"]).glob(f"*{kind.lower()}s*.json")
    validator = jsonschema.Draft202012Validator(closed(json.loads(path.read_text())))
    for _, document in DOCUMENTS:
        if document["kind"] == kind:
            assert [error.message for error in validator.iter_errors(document)] == []


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_launcher_file_is_valid_for_ray(cloud):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((INFRA / f"ray/{cloud}.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert set(types) == {"head", "gpu", "cpu"}
    assert config["head_node_type"] == "head"
    spot = {name for name, kind in types.items() if re.search(r"spot", json.dumps(kind), re.IGNORECASE)}
    assert spot == {"gpu", "cpu"}
    # A run sizes its replicas by the nodes that exist; the head offers no CPUs.
    assert types["head"]["resources"]["CPU"] == 0
    assert sum(kind["min_workers"] for kind in types.values()) > 0
    started = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in started


@pytest.mark.parametrize(
    "path",
    sorted([*INFRA.rglob("*.sh"), *(ROOT / "jobs").rglob("*.sbatch"), ROOT / ".ci/run"]),
    ids=lambda path: path.name,
)
def test_shell_script_passes_shellcheck(path):
    checked = subprocess.run([BIN / "shellcheck", "--shell=bash", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_dockerfile_passes_hadolint():
    checked = subprocess.run(
        [BIN / "hadolint", INFRA / "docker/Dockerfile"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_images_run_without_root_and_only_cuda_has_a_compiler():
    text = re.sub(r"^#.*\n|\\\n", "", (INFRA / "docker/Dockerfile").read_text(), flags=re.MULTILINE)
    stages = {}
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        first, _, rest = stage.partition("\n")
        base, name = re.fullmatch(r"(\S+) AS (\S+)", first).groups()
        stages[name] = stages.get(base, "") + rest
    assert {"cpu", "cuda"} <= set(stages)
    for target in ("cpu", "cuda"):
        assert re.findall(r"^USER (.*)$", stages[target], re.MULTILINE)[-1] == "1000:1000"
        assert "pip install" not in stages[target]
        assert bool(re.search(r"gcc|build-essential|clang", stages[target])) == (target == "cuda")
        assert "HEALTHCHECK" in stages[target]
    installs = re.findall(r"pip install.*", text)
    assert installs
    assert all("--constraint infra/requirements.lock" in install for install in installs)
    assert re.search(r"^ARG PYTHON=3\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)


def test_image_uses_existing_files():
    included = re.findall(r"^!(\S+)$", (INFRA / "docker/Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert all((ROOT / path).exists() for path in included)
    sources = re.findall(r'force_include"\]\["(\S+)"\]', (INFRA / "build.py").read_text())
    assert sources
    assert all((ROOT / path).is_dir() and any(path.startswith(keep) for keep in included) for path in sources)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_dry_run_of_a_recipe_prints_the_complete_job(path, capsys):
    assert run_command(["embed", str(path), "--dry-run"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert Job.parse(printed) == Job.load(str(path))
    assert set(printed["compute"]) == set(Job.model_fields["compute"].annotation.model_fields)


def test_dry_run_of_the_job_in_a_config_map_succeeds(tmp_path, capsys):
    config = next(d for _, d in DOCUMENTS if d["kind"] == "ConfigMap")
    (tmp_path / "job.yaml").write_text(config["data"]["job.yaml"])
    assert run_command(["embed", str(tmp_path / "job.yaml"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["output"]["path"] == "s3://BUCKET/embeddings/docs"


def test_dry_run_of_an_invalid_job_exits_with_2(tmp_path, capsys):
    assert run_command(["embed", str(JOBS[0]), "--dry-run", "--set", "model.max_token=3"]) == 2
    assert "model.max_token:" in capsys.readouterr().err
