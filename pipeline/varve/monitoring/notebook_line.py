"""The progress of a run in a notebook: a bar with a line of text, updated in place. Without widgets.

Knows nothing of the run. Invariant: texts are escaped.
"""

import html
import sys
from typing import Any


class NotebookLine:
    """One display of a notebook's cell."""

    def __init__(self, display: Any, kind: Any) -> None:
        """Show an empty bar.

        Args:
            display: `IPython.display.display`.
            kind: `IPython.display.HTML`.
        """
        self._kind = kind
        self._handle = display(kind(bar_html("starting", None)), display_id=True)

    @classmethod
    def in_notebook(cls) -> "NotebookLine | None":
        """A line in the present cell; None if this process is not the kernel of a notebook."""
        ipython: Any = sys.modules.get("IPython")  # a kernel has imported it
        shell = ipython.get_ipython() if ipython else None
        if getattr(shell, "kernel", None) is None:
            return None
        return cls(ipython.display.display, ipython.display.HTML)

    def update(self, text: str, share: float | None) -> None:
        """Replace the bar and its text.

        Args:
            text: one line.
            share: done, 0 to 1; None if it is not known.
        """
        if self._handle is not None:
            self._handle.update(self._kind(bar_html(text, share)))


def bar_html(text: str, share: float | None) -> str:
    """A bar and a line of text; the bar shows movement without a share."""
    value = "" if share is None else f' value="{min(1.0, max(0.0, share)):.4f}"'
    return (
        f'<div><progress{value} max="1" aria-label="progress of the run" style="width:100%"></progress>'
        f'<div style="font-variant-numeric:tabular-nums">{html.escape(text)}</div></div>'
    )
