"""Print the versions installed in this Python environment as a lock: constraints for `pip -c`.

Local version suffixes (torch 2.13.0+cpu) are dropped, so that the lock works on CPU and CUDA machines. CUDA packages
are excluded, because torch pins them.
"""

import sys
from importlib.metadata import distributions

EXCLUDED = ("varve", "pip", "triton", "nvidia-", "cuda-")


def pins() -> list[str]:
    """Return name==version of every installed distribution, sorted."""
    versions = {d.metadata["Name"].lower().replace("_", "-"): d.version.partition("+")[0] for d in distributions()}
    return [f"{name}=={versions[name]}" for name in sorted(versions) if not name.startswith(EXCLUDED)]


if __name__ == "__main__":
    sys.stdout.write(
        "# Written by `make lock`; used as constraints: pip install -c infra/requirements.lock '.[demo]'\n"
    )
    sys.stdout.writelines(f"{pin}\n" for pin in pins())
