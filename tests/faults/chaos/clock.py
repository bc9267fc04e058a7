"""A clock of drivers that jumps: a library in C, compiled here and preloaded, and its offset in a file."""

import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")


def compile_clock(folder: Path) -> Path | None:
    """Compile the library; None if there is no C compiler."""
    compiler, library = shutil.which("cc"), folder / "clock.so"
    if compiler is None:
        return None
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"], check=True)
    return library


class Clock:
    """The clock of the drivers of one trial."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._offset = folder / "clock"
        self._offset.write_bytes(struct.pack("l", 0))
        self.environment = {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self._offset)}

    def jump(self, offset_s: int) -> None:
        """From now on, show another time than the system's."""
        with self._offset.open("r+b") as file:
            file.write(struct.pack("l", offset_s))
