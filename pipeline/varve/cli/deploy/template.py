"""Where the templates are: beside this file in an installed wheel, under jobs/templates/ in a checkout."""

from pathlib import Path

_HERE = Path(__file__).parent


def read_template(name: str) -> str:
    """The text of `jobs/templates/NAME`, for example kuberay/rayjob.yaml."""
    packed = _HERE / "templates" / name
    path = packed if packed.exists() else _HERE.parents[3] / "jobs/templates" / name
    return path.read_text(encoding="utf-8")
