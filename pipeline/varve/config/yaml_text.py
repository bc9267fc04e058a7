"""Reads YAML of a job file or of a `--set` value, with bounds on its size, its depth and its number of values.

Knows nothing of a job's keys. Invariant: no file can stall a command or exhaust its memory: an alias counts with all
the values that it repeats, and reading stops at the first value beyond a bound.
"""

import re
import stat
from pathlib import Path
from typing import Any

import yaml

from varve.errors import JobError, one_line

MAX_DEPTH = 50
_MAX_BYTES = 2**20
_MAX_VALUES = 100_000
_MAX_NUMBER = 1000  # characters; Python takes minutes for numbers of a million digits
_TAG = "tag:yaml.org,2002:"
_UNUSED_TAGS = {f"{_TAG}{name}" for name in ("binary", "omap", "pairs", "set")}  # their values are not JSON
# A pipe of the shell, as in `varve plan <(command)`. Any other pipe or device may never end.
_OWN_PIPES = re.compile(r"/dev/(stdin|fd/\d+)|/proc/self/fd/\d+")


def read_yaml_file(path: str) -> Any:
    """The content of a file.

    Raises:
        JobError: it cannot be read, or is not YAML within the bounds.
    """
    try:
        content = _read(path)
    except (OSError, ValueError) as e:
        msg = f"{path}: cannot be read: {(isinstance(e, OSError) and e.strerror) or one_line(e)}"
        raise JobError(msg) from e
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as e:
        msg = f"{path}: is not UTF-8: byte {e.start} is 0x{content[e.start]:02x}. Save it as UTF-8"
        raise JobError(msg) from e
    return parse_yaml(text, where=path)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: one document.
        where: start of each message, for example the path of the file.

    Raises:
        JobError: it is not YAML within the bounds.
    """
    try:
        return yaml.load(text, _BoundedLoader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as e:
        msg = f"{where}: is not YAML: {_problem(e)}"
        raise JobError(msg) from e
    # PyYAML raises Python's own errors for values that do not match their form or their tag.
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as e:
        msg = f"{where}: a value cannot be read: {one_line(e)}. Write text that looks like a date or a number in quotes"
        raise JobError(msg) from e


def _read(path: str) -> bytes:
    """The bytes of a file within the bound.

    Raises:
        JobError: it is not a file, or larger.
        OSError, ValueError: it cannot be read.
    """
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or _OWN_PIPES.fullmatch(path)):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        msg = f"{path}: is {kind}: expected a job file"
        raise JobError(msg)
    with Path(path).open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        msg = f"{path}: is larger than {_MAX_BYTES // 2**20} MiB, which no job file is. Name many files with globs"
        raise JobError(msg)
    return content


class _BoundedLoader(yaml.SafeLoader):
    """A SafeLoader with bounds.

    It rejects duplicate keys, as YAML requires; PyYAML keeps the last value and drops the others silently.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._num_values = 0
        self._sizes: dict[int, int] = {}  # id of a node → its number of values; absent while it is read

    def compose_node(self, parent: Any, index: Any) -> Any:
        event, before = self.peek_event(), self._num_values
        self._depth += 1
        _refuse(self._depth > MAX_DEPTH, f"it is nested more than {MAX_DEPTH} levels deep", event)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            _refuse(id(node) not in self._sizes, f"the alias {event.anchor} is within its own anchor", event)
            self._num_values += self._sizes[id(node)]
        else:
            self._num_values += 1
            self._sizes[id(node)] = self._num_values - before
            _refuse(node.tag in _UNUSED_TAGS, f"the tag !!{node.tag.removeprefix(_TAG)} is not used in job files", node)
        _refuse(self._num_values > _MAX_VALUES, f"it has more than {_MAX_VALUES:,} values", event)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        too_long = node.tag != f"{_TAG}str" and len(node.value) > _MAX_NUMBER
        _refuse(too_long, f"a number or date has more than {_MAX_NUMBER:,} characters", node)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            _refuse(key.value in seen, f"the key {key.value} is there twice", key)
            seen.add(key.value)
        return node


def _refuse(is_wrong: bool, problem: str, place: Any) -> None:
    """Raise the problem with its position if the condition is true."""
    if is_wrong:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _problem(error: yaml.YAMLError) -> str:
    """Return the problem and its position without the surrounding text, which may be a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{one_line(error.problem)} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"
    return one_line(error)
