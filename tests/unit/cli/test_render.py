"""`varve render`: a job as a RayJob and as an sbatch script, and errors that are found before pods start."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from varve.cli.main import run_command
from varve.config.job import Job

IMAGE = "registry.example.com:5000/ml/varve:0.2.0-cuda"
COMPUTED = {"embedding": {"pool": "mean"}, "number": {"python": "kit_of_mine.deep.far:f", "type": "int32"}}
# Texts that shells and YAML often change: the end mark, no newline at the end, white space; and non-ASCII names.
MODULES = {
    "kit_of_mine/__init__.py": "",
    "kit_of_mine/deep/far.py": "from größe import g\nfrom ..near import text\n\ndef f(rows):\n\treturn g(text)",
    "kit_of_mine/near.py": "\n  \ntext = '''\nEND_OF_JOB\n$(touch no) `touch no` \\\\ \"a\"  \n\x0c%s: {é}\n'''\n\n",
    "größe.py": "def g(text): return text",
}


@pytest.fixture
def job_file(tmp_path):
    def write(**sections: dict) -> str:
        content = {
            "source": {"dataset": "parquet", "data_files": "s3://lake/docs/*.parquet", "text": "body"},
            "model": {"name": "sentence-transformers/all-MiniLM-L6-v2"},
            "output": {"path": "s3://lake/embeddings/Docs_2026/"},
        }
        for name, section in sections.items():
            content[name] = {**content.get(name, {}), **section}
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.fixture
def modules(tmp_path):
    """Python modules next to the job file; returns a function that runs them there."""
    for path, text in MODULES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    return lambda: computed(tmp_path)


def computed(folder: Path) -> str:
    """Hash and value of the function of the job in a folder, computed by a new process."""
    code = (
        "import sys; from varve.preprocessing.udf.loader import load; from varve.config.job import Job\n"
        "from varve.submission.package import job_code\n"
        "(code,) = job_code(Job.load(sys.argv[1])); print(code.sha256, ascii(load(code, '')(None)))"
    )
    command = [sys.executable, "-c", code, str(folder / "job.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def rendered(job_file, capsys):
    """(flags, sections of the job) → ConfigMap, RayJob."""

    def render(*flags: str, **sections: dict) -> tuple[dict, dict]:
        assert run_command(["render", "kuberay", job_file(**sections), "--image", IMAGE, *flags]) == 0
        config, ray_job = yaml.safe_load_all(capsys.readouterr().out)
        return config, ray_job

    return render


@pytest.fixture
def script(job_file, capsys):
    def render(*flags: str, **sections: dict) -> str:
        assert run_command(["render", "slurm", job_file(**sections), *flags]) == 0
        return capsys.readouterr().out

    return render


@pytest.fixture
def refused(job_file, capsys):
    def render(target: str, *flags: str, **sections: dict) -> str:
        assert run_command(["render", target, job_file(**sections), *flags]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return captured.err

    return render


def workers(ray_job: dict) -> dict:
    (group,) = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return group


def test_config_map_holds_the_given_job(rendered, job_file):
    changes = {"features": {"cls": {"pool": "cls", "layers": [0, 6]}}, "compute": {"replicas": {"min": 2, "max": 5}}}
    config, ray_job = rendered("--set", "model.max_tokens=64", **changes)
    given = Job.load(job_file(**changes), ["model.max_tokens=64"])
    assert Job.parse(yaml.safe_load(config["data"]["job.yaml"])) == given
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounted = {mount["name"]: mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    (volume,) = [volume for volume in head["volumes"] if "configMap" in volume]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    assert ray_job["spec"]["entrypoint"] == f"varve embed {mounted[volume['name']]}/job.yaml"


def test_name_is_a_label_and_equal_only_for_equal_jobs(rendered):
    same = [rendered()[1]["metadata"]["name"] for _ in range(2)]
    other = rendered("--set", "model.max_tokens=64")[1]["metadata"]["name"]
    long = rendered(output={"path": "s3://lake/" + "Ein_sehr-langer Name " * 9})[1]["metadata"]["name"]
    bare = rendered(output={"path": "s3://"})[1]["metadata"]["name"]
    assert same[0] == same[1] != other
    assert same[0].startswith("varve-docs-2026-")
    for name in (*same, other, long, bare):
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert "--" not in name
        assert len(name) <= 47


def mounted(config: dict, ray_job: dict, folder: Path) -> Path:
    """Write the head's volume as a kubelet does: entries at the top are links into a linked folder."""
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (items,) = [volume["configMap"]["items"] for volume in head["volumes"] if "configMap" in volume]
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", item["key"]) for item in items)
    for item in items:
        path = folder / "..2026_08_01" / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(config["data"][item["key"]], encoding="utf-8")
    (folder / "..data").symlink_to("..2026_08_01")
    for top in {item["path"].partition("/")[0] for item in items}:
        (folder / top).symlink_to(f"..data/{top}")
    return folder


def test_kuberay_head_finds_the_python_modules_of_a_job(rendered, modules, tmp_path):
    documents = rendered(features=COMPUTED)
    assert computed(mounted(*documents, tmp_path / "etc")) == modules()


def test_slurm_job_finds_the_python_modules_of_a_job(script, modules, tmp_path):
    text = script(features=COMPUTED)
    writes = text.partition('chmod 700 "$scratch"\n')[2].partition("num_nodes=")[0]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = ["bash", "-euo", "pipefail", "-c", f'scratch={scratch}\n{writes}\necho "$job"']
    job = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=True).stdout.strip()
    assert computed(Path(job).parent) == modules()
    assert [path.name for path in scratch.iterdir()] == ["job"]


def test_name_depends_on_the_code_of_the_job(rendered, modules, tmp_path):
    del modules
    before = [rendered(features=COMPUTED)[1]["metadata"]["name"] for _ in range(2)]
    (tmp_path / "größe.py").write_text("def g(text): return len(text)", encoding="utf-8")
    after = rendered(features=COMPUTED)[1]["metadata"]["name"]
    assert before[0] == before[1] != after


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (b"# coding: latin-1\nx = '\xe9'", "far.py"),
        (b"x = '" + b"a" * 300_000 + b"'", "262,144"),
        (None, "'kit_of_mine.deep.far'"),
    ],
)
def test_python_module_that_cannot_be_sent_is_refused(refused, modules, tmp_path, text, fragment):
    del modules
    path = tmp_path / "kit_of_mine/deep/far.py"
    path.unlink()
    if text:
        path.write_bytes(text)
    assert fragment in refused("kuberay", "--image", IMAGE, features=COMPUTED)


@pytest.mark.parametrize(
    ("compute", "group", "gpus", "least", "most"),
    [
        ({}, "gpu", "1", 1, 1),
        ({"replicas": 4}, "gpu", "1", 4, 4),
        ({"replicas": 5, "gpus": 0.25}, "gpu", "1", 2, 2),
        ({"replicas": {"min": 1, "max": 9}, "gpus": 0.5}, "gpu", "1", 1, 5),
        ({"replicas": 2, "gpus": 2}, "gpu", "2", 2, 2),
        ({"replicas": {"min": 3, "max": 6}, "gpus": 0}, "cpu", None, 3, 6),
    ],
)
def test_number_of_nodes_follows_replicas_and_gpus(rendered, compute, group, gpus, least, most):
    _, ray_job = rendered(compute=compute)
    found = workers(ray_job)
    resources = found["template"]["spec"]["containers"][0]["resources"]
    assert found["groupName"] == group
    assert (found["minReplicas"], found["replicas"], found["maxReplicas"]) == (least, least, most)
    assert resources["limits"].get("nvidia.com/gpu") == resources["requests"].get("nvidia.com/gpu") == gpus
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] == (most > least) == ("autoscalerOptions" in cluster)


def test_head_of_a_fixed_cluster_has_no_service_account_token(rendered):
    def mounts(ray_job: dict) -> bool:
        return ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["automountServiceAccountToken"]

    assert not mounts(rendered(compute={"replicas": 2})[1])
    assert mounts(rendered(compute={"replicas": {"min": 1, "max": 2}})[1])


def test_accelerator_selects_nodes_and_is_declared_to_the_autoscaler(rendered):
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    _, ray_job = rendered(compute={"replicas": {"min": 1, "max": 8}, "accelerator": "L4"})
    affinity = workers(ray_job)["template"]["spec"]["affinity"]["nodeAffinity"]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    labels = {term["matchExpressions"][0]["key"]: term["matchExpressions"][0]["values"] for term in terms}
    assert labels["cloud.google.com/gke-accelerator"] == ["nvidia-l4"]
    cluster = {"metadata": {"name": "x", "namespace": "x"}, "spec": ray_job["spec"]["rayClusterSpec"]}
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"] == {"CPU": 7, "GPU": 1, "memory": 26 * 2**30, "accelerator_type:L4": 1}
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (1, 8)


def test_accelerators_with_labels_have_names_of_ray():
    from ray.util.accelerators import accelerators

    from varve.cli.deploy.template import read_template

    names = {value for value in vars(accelerators).values() if isinstance(value, str)}
    assert set(yaml.safe_load(read_template("kuberay/accelerators.yaml"))) <= names


def test_head_and_workers_get_the_environment_from_the_secret(rendered):
    _, ray_job = rendered("--secret", "varve-env", compute={"env": ["HF_TOKEN", "AWS_REGION"]})
    cluster = ray_job["spec"]["rayClusterSpec"]
    for pod in (cluster["headGroupSpec"]["template"], workers(ray_job)["template"]):
        env = {variable["name"]: variable for variable in pod["spec"]["containers"][0]["env"]}
        for name in ("HF_TOKEN", "AWS_REGION"):
            assert env[name]["valueFrom"] == {"secretKeyRef": {"name": "varve-env", "key": name}}
    assert "HF_TOKEN" not in json.dumps(ray_job["spec"]["submitterPodTemplate"])


def test_all_objects_have_the_image_and_the_namespace(rendered):
    config, ray_job = rendered("--namespace", "ml")
    assert {config["metadata"]["namespace"], ray_job["metadata"]["namespace"]} == {"ml"}
    assert set(re.findall(r'"image": "([^"]*)"', json.dumps(ray_job))) == {IMAGE}


def test_queue_suspends_a_run_until_kueue_admits_it(rendered, refused):
    _, ray_job = rendered("--queue", "gpus", compute={"replicas": 3})
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert ray_job["spec"]["suspend"] is True
    assert ray_job["spec"]["shutdownAfterJobFinishes"] is True
    error = refused("kuberay", "--image", IMAGE, "--queue", "gpus", compute={"replicas": {"min": 1, "max": 8}})
    assert "--set compute.replicas=8" in error


def test_object_store_fits_its_shared_memory(rendered, refused):
    group = workers(rendered(compute={"object_store_bytes": 4_000_000_000})[1])
    (shm,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm"]
    assert group["rayStartParams"]["object-store-memory"] == "4000000000"
    assert int(shm["emptyDir"]["sizeLimit"].removesuffix("Mi")) * 2**20 > 4_000_000_000
    assert "object_store_bytes" in refused("kuberay", "--image", IMAGE, compute={"object_store_bytes": 20_000_000_000})


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"source": {"data_files": "docs/*.parquet"}}, "source.data_files"),
        ({"source": {"data_files": ["s3://a/b.parquet", "/data/c.parquet"]}}, "source.data_files"),
        ({"source": {"dataset": "./docs", "data_files": None}}, "source.dataset"),
        ({"model": {"name": "/models/bert"}}, "model.name"),
        ({"model": {"name": "~/bert"}}, "model.name"),
        ({"output": {"path": "features"}}, "output.path"),
        ({"output": {"path": "file:///features"}}, "output.path"),
    ],
)
def test_local_path_is_refused_for_pods(refused, sections, key):
    assert key in refused("kuberay", "--image", IMAGE, **sections)


def test_paths_below_a_mounted_claim_are_accepted(rendered, refused):
    paths = {"model": {"name": "/lake/models/bert"}, "output": {"path": "/lake/features"}}
    _, ray_job = rendered("--claim", "lake:/lake", **paths)
    for pod in (ray_job["spec"]["rayClusterSpec"]["headGroupSpec"], workers(ray_job)):
        spec = pod["template"]["spec"]
        (volume,) = [volume for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
        assert volume["persistentVolumeClaim"]["claimName"] == "lake"
        assert {"name": volume["name"], "mountPath": "/lake"} in spec["containers"][0]["volumeMounts"]
    assert "/lakeside/bert" in refused(
        "kuberay", "--image", IMAGE, "--claim", "lake:/lake", model={"name": "/lakeside/bert"}
    )


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        ([], "--image is missing"),
        (["--image", ""], "--image"),
        (["--image", "Not An Image"], "--image: 'Not An Image'"),
        (["--image", "reg/varve:"], "--image: 'reg/varve:'"),
        (["--image", IMAGE, "--namespace", "ML"], "--namespace: 'ML'"),
        (["--image", IMAGE, "--namespace", ""], "--namespace: ''"),
        (["--image", IMAGE, "--claim", "lake"], "NAME:/PATH"),
        (["--image", IMAGE, "--claim", "lake:/"], "NAME:/PATH"),
        (["--image", IMAGE, "--claim", "lake:/tmp/lake"], "NAME:/PATH"),
        (["--image", IMAGE, "--partition", "gpu"], "--partition goes with slurm"),
        (["--image", IMAGE, "--set", "compute.env=[HF_TOKEN]"], "--secret NAME"),
        (["--image", IMAGE, "--set", "compute.accelerator=GTX"], "no node labels are known"),
        (["--image", IMAGE, "--set", "compute.replicas=0"], "compute.replicas: 0 is not allowed"),
    ],
)
def test_error_names_a_wrong_flag(refused, flags, fragment):
    assert fragment in refused("kuberay", *flags)


@pytest.mark.parametrize(
    ("image", "may_change"),
    [("varve", True), ("a/varve:latest", True), (IMAGE, False), (f"a/b@sha256:{'0' * 64}", False)],
)
def test_image_that_may_change_gets_a_warning(job_file, capsys, image, may_change):
    assert run_command(["render", "kuberay", job_file(), "--image", image]) == 0
    assert ("--image:" in capsys.readouterr().err) == may_change


def test_output_is_a_file_named_after_the_job(job_file, tmp_path, capsys):
    assert (
        run_command(["render", "kuberay", job_file(), "--image", IMAGE, "--output", str(tmp_path / "new"), "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    (written,) = (tmp_path / "new").iterdir()
    assert (written.name, result["file"]) == (f"{result['name']}.yaml", str(written))
    assert list(yaml.safe_load_all(written.read_text())) == result["documents"]
    assert run_command(["render", "kuberay", job_file(), "--image", IMAGE, "--output", str(written)]) == 2
    assert f"--output: {written}" in capsys.readouterr().err


def test_slurm_header_requests_what_the_job_needs(script):
    text = script(
        "--partition",
        "gpu",
        "--account",
        "lab",
        "--time",
        "04:00:00",
        compute={"replicas": 6, "gpus": 0.5, "accelerator": "A100"},
    )
    header = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE))
    assert header["job-name"].startswith("varve-docs-2026-")
    assert (header["nodes"], header["gpus-per-node"]) == ("3", "a100:1")
    assert (header["partition"], header["account"], header["time"]) == ("gpu", "lab", "04:00:00")
    assert header["signal"] == "B:USR1@120"
    assert text.index("#SBATCH --partition") < text.index("set -euo pipefail")


def test_slurm_script_for_cpus_requests_no_gpu(script):
    assert "gpus-per-node" not in script(compute={"gpus": 0})


def test_slurm_script_contains_the_job_and_is_valid(script, job_file):
    hostile = "a $(touch no) `touch no` 'b' \"c\""
    text = script(source={"text": hostile})
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    content = re.search(r"<<'END_OF_JOB'\n(.*?)END_OF_JOB\n", text, re.DOTALL)
    assert content
    assert Job.parse(yaml.safe_load(content[1])) == Job.load(job_file(source={"text": hostile}))
    assert "${1:?" not in text


def test_slurm_refuses_a_pool_and_values_that_break_its_header(refused):
    assert "--set compute.replicas=8" in refused("slurm", compute={"replicas": {"min": 1, "max": 8}})
    assert "--partition" in refused("slurm", "--partition", "gpu\n#SBATCH --uid=0")
    assert "--image goes with kuberay" in refused("slurm", "--image", IMAGE)
