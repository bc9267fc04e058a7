"""What the cluster runs first: checks its own Python and packages, then starts the command.

Read by whatever Python the cluster has, so it is written for 3.6, and imports nothing of Varve before it is sure that
Varve can run there.
"""

import runpy
import sys
from pathlib import Path

LEAST_PYTHON = (3, 11)


def main() -> None:
    """Check, then run the command that the arguments give."""
    wrong = wrong_python() or wrong_packages()
    if wrong:
        sys.stderr.write(f"varve: {wrong}\n")
        sys.exit(2)
    runpy.run_module("varve", run_name="__main__", alter_sys=True)


def wrong_python() -> "str | None":
    """What is wrong with this Python; None if nothing is."""
    if tuple(sys.version_info[:2]) >= LEAST_PYTHON:
        return None
    found, least = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, LEAST_PYTHON))
    return (
        f"the cluster's Python is {found} ({sys.executable}), and Varve needs {least} or newer. Use an image or an "
        "environment that has it"
    )


def wrong_packages() -> "str | None":
    """Which packages the cluster lacks or has too old; None if there are none."""
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        from packaging.requirements import Requirement
    except ImportError:
        return f"the cluster's Python ({sys.executable}) has no package `packaging`, and so no Ray either"
    wrong = []
    for line in requires("varve") or ():
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            wrong.append(f"{needed}: missing")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            wrong.append(f"{needed}: found {found}")
    if not wrong:
        return None
    listed = "\n  ".join(wrong)
    return (
        f"the cluster's Python ({sys.executable}) does not have what Varve needs:\n  {listed}\n"
        "Install these there, or use an image that has them"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
