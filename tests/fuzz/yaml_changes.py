"""Changes of YAML text: values as in JSON, tags, anchors, merges, repeated keys, and other forms of scalars."""

from random import Random

import yaml

from tests.fuzz.json_changes import OUTSIDE, change_document

_SCALARS = (
    f'!!python/object/apply:os.system ["touch {OUTSIDE}/run"]', "!!python/name:os.system", "!!binary aGk=",
    "!!set {a, b}",
    "!!int x", "!!float .nan", "!!timestamp 2026-13-45", "!<tag:x> y", "&a [*a]", "&a {b: *a}", "*a", "<<", "=", "~",
    "1:30:00",
    "0o17", "0b1", "1_000", "1e999", "-.inf", "2026-11-30", "yes", "NO", "|\n  x", ">-\n  x", "'it''s'", '"\\ud800"',
    '"\\0"',
    "? a", "[a, b: c]", "{a, b}", "%TAG", "@x", "`x`", "\t", "!!omap [a: 1]", "!!str 1", "!!null x",
    "9" * 5000, "[" * 500,
)  # fmt: skip
_BOMB = "\n".join(
    ["l0: &l0 [x, x, x, x, x, x, x, x, x]", *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))]
)
_LINES = (
    "---", "...", "%YAML 9.9", "<<: *a", "<<: {source: 1}", "? [a, b]\n: c", "? {a: b}\n: c", "1: 2", "null: x",
    "true: x",
    "2026-01-01: x", "- x", "  deep: x", "\ta: b", "a: &a\n  b: *a", "# c", "\x00", "\ufeff", "\u2028", _BOMB,
)  # fmt: skip
_STRUCTURE_SHARE = 0.5


def change_yaml(random: Random, content: bytes) -> bytes:
    """Change the values or the text of a document; a Markdown file by its text.

    Raises:
        ValueError: it is not YAML in UTF-8.
    """
    text = content.decode()
    if random.random() < _STRUCTURE_SHARE and not text.startswith("---"):
        return _changed_values(random, text)
    for _ in range(random.randint(1, 2)):
        text = _changed_text(random, text)
    return text.encode("utf-8", "surrogatepass")


def _changed_values(random: Random, text: str) -> bytes:
    try:
        document = yaml.safe_load(text)
        for _ in range(random.randint(1, 3)):
            document = change_document(random, document)
        style = random.choice((True, False, None))
        return yaml.safe_dump(document, default_flow_style=style, allow_unicode=True).encode("utf-8", "surrogatepass")
    except yaml.YAMLError as e:
        raise ValueError(str(e)) from e


def _changed_text(random: Random, text: str) -> str:
    lines = text.split("\n")
    place = random.randrange(len(lines))
    key, colon, _ = lines[place].partition(":")
    match random.randrange(6):
        case 0:
            lines.insert(place, random.choice(_LINES))
        case 1:
            lines.insert(place, lines[random.randrange(len(lines))])
        case 2:
            lines[place] = random.choice((" ", "  ", "\t", "")) + lines[place].lstrip()
        case 3:
            del lines[place]
        case _:
            value = random.choice(_SCALARS)
            lines[place] = f"{key}: {value}" if colon else value
    return "\n".join(lines)
