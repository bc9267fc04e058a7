import pytest

from varve.cluster.memory_limit import default_bytes, parse_bytes
from varve.errors import JobError


@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/", "memory.max"),  # a container
        ("0::/slurm/job_7/step_0", "slurm/job_7/memory.max"),
        ("4:memory:/job_7\n0::/", "memory/job_7/memory.limit_in_bytes"),
    ],
)
def test_default_is_a_share_of_the_limit_of_the_control_group(group, file, tmp_path):
    limit = tmp_path / "sys/fs/cgroup" / file
    for path, content in ((tmp_path / "proc/self/cgroup", group), (limit, str(1 << 30))):
        path.parent.mkdir(parents=True)
        path.write_text(content + "\n")
    assert default_bytes(tmp_path) == int(0.4 * (1 << 30))
    limit.write_text("max\n")
    assert default_bytes(tmp_path) > int(0.4 * (1 << 30))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4e9),
        ("500m", 5e8),
        ("2e9", 2e9),
        ("1.5 TB", 1.5e12),
        ("4GiB", 4 * 2**30),
        ("4Gi", 4 * 2**30),
        ("512 MiB", 2**29),
        ("0.5tib", 2**39),
    ],
)
def test_sizes_are_parsed(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["lots", "", "1.2.3GB", "63MB", "1e999", "4PB", "4GW", "4000000000iB", "4Gbit", "-4GB"]
)
def test_other_texts_and_small_sizes_are_rejected(text):
    with pytest.raises(JobError, match=f"--memory: '{text}'"):
        parse_bytes(text)
