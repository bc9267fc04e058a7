"""Print the versions installed beside this Python as a lock: constraints that a bare `pip` takes with `-c`.

Local builds (torch 2.13.0+cpu) are written without their suffix, so the lock fits CPU and CUDA machines alike; what
torch itself brings for CUDA is pinned by torch and left out.
"""

import sys
from importlib.metadata import distributions

LEFT_OUT = ("varve", "pip", "triton", "nvidia-", "cuda-")


def pins() -> list[str]:
    """name==version of every installed distribution, sorted."""
    found = {d.metadata["Name"].lower().replace("_", "-"): d.version.partition("+")[0] for d in distributions()}
    return [f"{name}=={found[name]}" for name in sorted(found) if not name.startswith(LEFT_OUT)]


if __name__ == "__main__":
    sys.stdout.write(
        "# Written by `make lock`; used as constraints: pip install -c infra/requirements.lock '.[demo]'\n"
    )
    sys.stdout.writelines(f"{pin}\n" for pin in pins())
