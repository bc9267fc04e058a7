"""What is fuzzed: valid files, and a reader that must accept any change of them or refuse it in a message."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HANG_S = 10.0
MEMORY_MB = 512


@dataclass(frozen=True, slots=True)
class Target:
    """A reader of files.

    Attributes:
        name: of the target.
        make: writes valid files to a folder.
        files: patterns of the files that are changed.
        read: reads the folder in which a file was changed, whose path below it is given; it raises `VarveError` if it
            refuses the file. What it writes to the folder is removed.
        hang_s: seconds after which a case counts as a hang.
        memory_mb: additional memory of one case.
        confined: no file outside of the folder may be read either.
    """

    name: str
    make: Callable[[Path], None]
    files: tuple[str, ...]
    read: Callable[[Path, str], None]
    hang_s: float = HANG_S
    memory_mb: int = MEMORY_MB
    confined: bool = False

    def changed_files(self, folder: Path) -> list[str]:
        """The files that may be changed, relative to the folder."""
        found = {
            path.relative_to(folder).as_posix() for each in self.files for path in folder.glob(each) if path.is_file()
        }
        return sorted(found)
