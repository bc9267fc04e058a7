"""Templates: next to this file in an installed wheel, in jobs/templates/ in a checkout."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def read_template(name: str) -> str:
    """Return the text of `jobs/templates/NAME`, for example of kuberay/rayjob.yaml."""
    installed = _FOLDER / "templates" / name
    path = installed if installed.exists() else _FOLDER.parents[3] / "jobs/templates" / name
    return path.read_text(encoding="utf-8")
