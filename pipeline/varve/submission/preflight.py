"""The script that a cluster runs first: checks the cluster's Python and packages, then starts the command.

It must run on any Python of the cluster: it is written for Python 3.6 and imports Varve only after the checks.
"""

import runpy
import sys
from pathlib import Path

MIN_PYTHON = (3, 11)


def main() -> None:
    """Check the environment, then run the command in the arguments."""
    problem = python_problem() or package_problem()
    if problem:
        sys.stderr.write(f"varve: {problem}\n")
        sys.exit(2)
    runpy.run_module("varve", run_name="__main__", alter_sys=True)


def python_problem() -> "str | None":
    """Why this Python cannot run Varve; None if it can."""
    if tuple(sys.version_info[:2]) >= MIN_PYTHON:
        return None
    version, minimum = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, MIN_PYTHON))
    return (
        f"the cluster's Python is {version} ({sys.executable}), but Varve needs {minimum} or newer. Use an image or an "
        "environment that has it"
    )


def package_problem() -> "str | None":
    """Which packages are missing or have a wrong version; None if there are none."""
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        from packaging.requirements import Requirement
    except ImportError:
        return f"the cluster's Python ({sys.executable}) lacks the package `packaging`, so it has no Ray either"
    problems = []
    for line in requires("varve") or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement}: missing")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            problems.append(f"{requirement}: found {installed}")
    if not problems:
        return None
    listed = "\n  ".join(problems)
    return (
        f"the cluster's Python ({sys.executable}) does not have the packages that Varve needs:\n  {listed}\n"
        "Install them there, or use an image that has them"
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
