"""Where the templates are: beside this file in an installed wheel, under infra/ in a checkout."""

from pathlib import Path

_HERE = Path(__file__).parent


def read_template(name: str) -> str:
    """The text of `infra/NAME`, for example kuberay/rayjob.yaml."""
    packed = _HERE / "templates" / name
    path = packed if packed.exists() else _HERE.parents[1] / "infra" / name
    return path.read_text(encoding="utf-8")
