"""Fills in jobs/templates/kuberay/rayjob.yaml for a job: a ConfigMap with its files, and a RayJob that runs it.

Talks to no cluster: Kubernetes reports an image, a Secret or a queue that does not exist.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import yaml

from varve.cli.deploy.shape import Nodes, job_files, job_name, nodes_of
from varve.cli.deploy.template import read_template
from varve.config.compute import Replicas
from varve.config.job import Job
from varve.errors import JobError
from varve.submission.package import local_paths

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_HOST = r"[a-zA-Z0-9]([-.a-zA-Z0-9]*[a-zA-Z0-9])?(:[0-9]+)?"
_IMAGE = re.compile(
    rf"({_HOST}/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?"
    r"(?P<digest>@sha256:[0-9a-f]{64})?"
)
# Folders that the pods themselves use are excluded.
_MOUNT = re.compile(r"/(?!(?:tmp|cache|dev|etc|venv|usr|bin|lib|lib64|proc|sys|var)(?:/|$))[^:]*[^:/]")
_MAX_BYTES = 2**18  # of an object's annotations, in which `kubectl apply` stores a copy of the object
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of the Kubernetes cluster, which a job file does not have.

    Raises:
        JobError: Kubernetes would not accept a value.
    """

    image: str
    namespace: str | None = None
    secret: str | None = None  # with a key for each variable of compute.env
    queue: str | None = None  # a LocalQueue of Kueue
    claim: str | None = None  # NAME:/PATH, a PersistentVolumeClaim that every pod mounts

    def __post_init__(self) -> None:
        if not _IMAGE.fullmatch(self.image):
            msg = f"--image: {self.image!r} is not an image: expected REGISTRY/NAME:TAG"
            raise JobError(msg)
        for flag, value, allowed in (
            ("--namespace", self.namespace, _LABEL),
            ("--secret", self.secret, _NAME),
            ("--queue", self.queue, _LABEL),
            ("--claim", self.claim and self.claim.partition(":")[0], _NAME),
        ):
            if value is not None and not allowed.fullmatch(value):
                msg = f"{flag}: {value!r} is not a name in Kubernetes: expected lower-case letters, digits and -"
                raise JobError(msg)
        if self.claim is not None and not _MOUNT.fullmatch(self.mount):
            msg = f"--claim: {self.claim!r}: expected NAME:/PATH, a claim and its mount path, for example lake:/lake"
            raise JobError(msg)

    @property
    def mount(self) -> str:
        """Mount path of the claim; empty without a claim."""
        return self.claim.partition(":")[2] if self.claim else ""

    @property
    def image_may_change(self) -> bool:
        """Whether the image may be another one tomorrow: it has no tag, or the tag latest."""
        match = _IMAGE.fullmatch(self.image)
        return bool(match) and not match["digest"] and match["tag"] in {None, ":latest"}


def render(job: Job, options: Options) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(name, ConfigMap, RayJob) of a job.

    Raises:
        JobError: the job cannot run in pods as it is, or one of its Python modules does not exist.
    """
    _check_paths(job, options)
    _check_names(job, options)
    config, ray_job = yaml.safe_load_all(read_template("kuberay/rayjob.yaml"))
    name = job_name(job)
    for document in (config, ray_job):
        document["metadata"] |= {"name": name} | ({"namespace": options.namespace} if options.namespace else {})
    spec, cluster = ray_job["spec"], ray_job["spec"]["rayClusterSpec"]
    _fill_config(config, cluster["headGroupSpec"]["template"]["spec"], job_files(job))
    _fill_cluster(cluster, job, nodes_of(job.compute))
    if options.queue:
        ray_job["metadata"]["labels"] |= {_QUEUE_LABEL: options.queue}
        spec["suspend"] = True
    for pod in (spec["submitterPodTemplate"], *_ray_pods(cluster)):
        pod["metadata"]["labels"] |= {"app.kubernetes.io/instance": name}
        pod["spec"]["containers"][0]["image"] = options.image
    for pod in _ray_pods(cluster):
        _fill_pod(pod["spec"], job, options)
    return name, config, ray_job


def _fill_config(config: dict[str, Any], head: dict[str, Any], files: Mapping[str, str]) -> None:
    """Store the files as keys of the ConfigMap, and mount them in the head's pod under their paths."""
    # Keys allow neither slashes nor non-ASCII. Paths of modules have no dash, so two paths never share a key.
    keys = {path: quote(path.replace("/", ".")).replace("%", "-") for path in files}
    config["data"] = {keys[path]: text for path, text in files.items()}
    size = len(json.dumps(config).encode())
    if size > _MAX_BYTES:
        msg = (
            f"the job file and its Python modules take {size:,} bytes, and `kubectl apply` allows {_MAX_BYTES:,} per "
            "object. Install the larger modules in the image: they are imported by name"
        )
        raise JobError(msg)
    (volume,) = [volume["configMap"] for volume in head["volumes"] if "configMap" in volume]
    volume |= {"name": config["metadata"]["name"], "items": [{"key": key, "path": path} for path, key in keys.items()]}


def _check_paths(job: Job, options: Options) -> None:
    mounted = PurePosixPath(options.mount or "/nowhere")
    invisible = {
        key: path
        for key, path in local_paths(job).items()
        if not (options.claim and PurePosixPath(path.removeprefix("file://")).is_relative_to(mounted))
    }
    if invisible:
        listed = "\n".join(f"{key}: {path} is a local path, which pods cannot see" for key, path in invisible.items())
        msg = (
            f"{listed}\nUse a store (s3://, gs://, az://) or a Hub id, or mount a shared file system with "
            "--claim NAME:/PATH and use paths below /PATH in the job"
        )
        raise JobError(msg)


def _check_names(job: Job, options: Options) -> None:
    if job.compute.env and not options.secret:
        msg = (
            f"compute.env names {', '.join(job.compute.env)}: give --secret NAME, a Secret of the namespace with a key "
            "for each variable"
        )
        raise JobError(msg)
    replicas = job.compute.replicas
    if options.queue and isinstance(replicas, Replicas):
        msg = (
            "--queue: Kueue admits only clusters of a fixed size. Set a number of replicas, for example "
            f"--set compute.replicas={replicas.max}"
        )
        raise JobError(msg)


def _ray_pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]


def _fill_cluster(cluster: dict[str, Any], job: Job, nodes: Nodes) -> None:
    """Keep only the worker group of the replicas, with as many nodes as they need."""
    group = next(g for g in cluster["workerGroupSpecs"] if g["groupName"] == ("gpu" if nodes.gpus else "cpu"))
    cluster["workerGroupSpecs"] = [group]
    group |= {"replicas": nodes.min, "minReplicas": nodes.min, "maxReplicas": nodes.max}
    if not nodes.elastic:
        cluster["enableInTreeAutoscaling"] = False
        del cluster["autoscalerOptions"]
        cluster["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"] = False
    container = group["template"]["spec"]["containers"][0]
    for amounts in container["resources"].values() if nodes.gpus else ():
        amounts["nvidia.com/gpu"] = str(nodes.gpus)
    if job.compute.accelerator:
        _choose_accelerator(group, job.compute.accelerator)
    if job.compute.object_store_bytes != "auto":
        _size_object_store(group, job.compute.object_store_bytes)


def _choose_accelerator(group: dict[str, Any], accelerator: str) -> None:
    """Require nodes with this type of GPU, and declare it to the autoscaler as a resource of the group."""
    known = yaml.safe_load(read_template("kuberay/accelerators.yaml"))
    if accelerator not in known:
        msg = (
            f"compute.accelerator: {accelerator!r}: no node labels are known for it, only for {', '.join(known)}. "
            "Render with --set compute.accelerator=null, and select the nodes in the worker group's affinity"
        )
        raise JobError(msg)
    terms = [
        {"matchExpressions": [{"key": label, "operator": "In", "values": values}]}
        for label, values in known[accelerator].items()
    ]
    group["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = {
        "nodeSelectorTerms": terms
    }
    group["rayStartParams"]["resources"] = f'"{{\\"accelerator_type:{accelerator}\\": 1}}"'


def _size_object_store(group: dict[str, Any], size_bytes: int) -> None:
    """Set the size of the object store and of the shared memory that holds it, within the memory of the pod."""
    spec = group["template"]["spec"]
    group["rayStartParams"]["object-store-memory"] = str(size_bytes)
    shared_mb = -(-size_bytes // 2**20) + 64
    memory = spec["containers"][0]["resources"]["limits"]["memory"]
    if shared_mb > int(memory.removesuffix("Gi")) * 1024 // 2:
        msg = (
            f"compute.object_store_bytes: {size_bytes:,} is more than half of the {memory} of a pod, which also needs "
            "memory for its replicas. Set less, or raise the memory in the rendered file"
        )
        raise JobError(msg)
    for volume in spec["volumes"]:
        if volume["name"] == "shm":
            volume["emptyDir"]["sizeLimit"] = f"{shared_mb}Mi"


def _fill_pod(spec: dict[str, Any], job: Job, options: Options) -> None:
    """Add the variables of compute.env from the Secret, and mount the claim."""
    container = spec["containers"][0]
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": options.secret, "key": name}}} for name in job.compute.env
    ]
    container["env"] = [*container["env"], *secrets]
    if options.claim:
        claim = options.claim.partition(":")[0]
        volume = {"name": "shared", "persistentVolumeClaim": {"claimName": claim}}
        spec["volumes"] = [*spec["volumes"], volume]
        container["volumeMounts"] = [*container["volumeMounts"], {"name": "shared", "mountPath": options.mount}]
