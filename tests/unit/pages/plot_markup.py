"""Reads the SVG of a figure as XML, so a test sees what a browser sees."""

from xml.etree import ElementTree as ET

from varve.pages.figure import Figure

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "\u202e<script>alert(1)</script>\"'&" + "x" * 1_000_000


def elements(figure: Figure, tag: str) -> list[ET.Element]:
    return list(ET.fromstring(figure.svg).iter(SVG + tag))


def numbers(element: ET.Element, *names: str) -> list[float]:
    return [float(element.attrib[name]) for name in names]


def hints(figure: Figure) -> list[str]:
    return [element.text or "" for element in elements(figure, "title")]


def texts(figure: Figure) -> list[str]:
    return [element.text or "" for element in elements(figure, "text")]


def assert_is_harmless(figure: Figure, *, most_bytes: int = 300_000) -> None:
    """The plot is well-formed, small, and holds no script and no direction mark."""
    root = ET.fromstring(figure.svg)
    assert not {element.tag for element in root.iter()} & {SVG + "script", "script"}
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
    assert "\u202e" not in figure.svg
    assert "nan" not in " ".join(str(element.attrib) for element in root.iter())
    assert len(figure.svg) <= most_bytes
    assert len(figure.rows) <= 200
    assert max((len(cell) for row in figure.rows for cell in row), default=0) <= 400
