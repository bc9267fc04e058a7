"""Lines of the package that cases reach, seen through `sys.settrace`.

Tracing takes up to two thirds of a case's time, so one case of `EVERY` is traced. Knows nothing of cases. Invariant: a
function whose lines were all reached is not traced again.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

EVERY = 3


class LineCoverage:
    """Lines that were reached in this process.

    Attributes:
        is_new: whether the last case was traced, and reached a line that no case before it did.
    """

    def __init__(self, folder: str) -> None:
        """Trace functions of the files below a folder."""
        self._folder = folder
        # The hash of a code object is computed from its content each time, so its id is the key; the object is kept.
        self._missing: dict[int, tuple[CodeType, set[int]]] = {}
        self._cases = 0
        self.is_new = False

    @contextmanager
    def case(self, *, every: int = EVERY) -> Iterator[None]:
        """Trace what runs within, if it is the turn of this case."""
        self.is_new = False
        self._cases += 1
        if self._cases % every:
            yield
            return
        sys.settrace(self._on_call)
        try:
            yield
        finally:
            sys.settrace(None)

    def _on_call(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        code = frame.f_code
        known = self._missing.get(id(code))
        if known is None:
            if not code.co_filename.startswith(self._folder):
                return None
            known = code, {line for *_, line in code.co_lines() if line is not None}
            self._missing[id(code)] = known
        return self._on_line if known[1] else None

    def _on_line(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        missing = self._missing[id(frame.f_code)][1]
        if frame.f_lineno in missing:
            missing.discard(frame.f_lineno)
            self.is_new = True
        return self._on_line
