"""Renders an HTML page from a template, with everything escaped.

Knows nothing of the content. Invariant: a page is one document that needs no network; its only markup from outside of
templates is that of figures and of the map's JSON.
"""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from varve.pages import label
from varve.pages.plot_style import DARK, LIGHT, STYLE

_MAX_CELL = 400
_NUMBER_CHARACTERS = frozenset(f"0123456789.,{label.MINUS}+-{label.NO_VALUE}%() to sminhdTGMek")


def render(package: str, template: str, **values: Any) -> str:
    """Render a template of a package; it may use `base.html.jinja` and `macros.html.jinja`.

    Args:
        package: dotted name of the package that holds the template.
        template: name of its file.
        values: what the template uses.

    Returns:
        The document, without characters that UTF-8 cannot encode.
    """
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader("varve.pages", "")])
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.globals |= {"plot_style": STYLE, "light": LIGHT, "dark": DARK}
    environment.filters |= {"cell": _cell}
    environment.tests |= {"figures": _is_number}
    return environment.get_template(template).render(**values).encode("utf-8", "replace").decode("utf-8")


def _cell(text: object, limit: int = _MAX_CELL) -> str:
    """A text of a table: one line, cut, without characters that turn its direction."""
    return label.label(text, limit)


def _is_number(text: object) -> bool:
    """Whether a cell holds a number, perhaps with an interval or a unit, so that it is aligned right."""
    cell = str(text)[:60]
    return any(c.isdigit() for c in cell) and set(cell) <= _NUMBER_CHARACTERS
