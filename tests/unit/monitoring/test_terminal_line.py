"""A line that is updated in place never wraps, whatever the width of the terminal."""

import fcntl
import os
import struct
import termios

import pytest

from varve.monitoring.terminal_line import CLEAR_LINE, fit, update_line

TEXT = "12% · 1:23:45 left · 120,345 of 1,000,000 rows · 3 failed rows · 12,345 tokens/s · 2 replica(s)"


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (200, TEXT),
        (len(TEXT) + 1, TEXT),
        (len(TEXT), TEXT.removesuffix(" · 2 replica(s)")),
        (48, "12% · 1:23:45 left · 120,345 of 1,000,000 rows"),
        (44, "12% · 1:23:45 left"),
        (20, "12% · 1:23:45 left"),
        (6, "12%"),
    ],
)
def test_fit_keeps_whole_parts_in_their_order(columns, line):
    assert fit(TEXT, columns) == line


@pytest.mark.parametrize("columns", [1, 20, 44, 45])
def test_fit_of_one_long_part_marks_the_cut(columns):
    line = fit("2 replica(s) ready, encoding the first block", columns)
    assert len(line) <= max(columns - 1, 1)
    assert line.endswith("…" if columns < 45 else "block")


def test_update_follows_the_width_of_the_terminal():
    read_fd, terminal_fd = os.openpty()
    with os.fdopen(terminal_fd, "w") as terminal:
        for columns, shown in [(120, TEXT), (44, "12% · 1:23:45 left"), (10, "12%")]:
            fcntl.ioctl(terminal_fd, termios.TIOCSWINSZ, struct.pack("4H", 16, columns, 0, 0))
            update_line(terminal, TEXT)
            assert os.read(read_fd, 1000).decode() == CLEAR_LINE + shown
    os.close(read_fd)
