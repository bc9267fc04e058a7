"""What a local Ray needs of this machine, checked before it starts.

Ray finds the same faults later, one at a time, and names neither a variable nor a limit that the user can set. Knows
nothing of jobs beyond the size of Ray. Invariants: nothing stays changed; importing this file imports neither ray nor
torch.
"""

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from varve.cluster.session_folder import max_folder_bytes
from varve.errors import RunError

# Ray's session: its logs, the ports of its processes. Varve's runs write less than a megabyte of them.
_SESSION_BYTES = 16 << 20
# Ray's processes hold up to 60 files each, plus up to 3 for each worker. Ray raises the soft limit by itself.
_FILES, _FILES_PER_CPU = 96, 6
# Ray puts a smaller object store into the temporary folder if /dev/shm has no room for it.
_LARGE_OBJECT_STORE = 10_000_000_000


def check_machine(
    temporary_folder: Path,
    num_cpus: int,
    object_store_bytes: int | None = None,
    shared_memory: Path = Path("/dev/shm"),  # noqa: S108 (only checked)
) -> None:
    """Check that Ray can start here.

    Args:
        temporary_folder: in which Ray's session will be.
        num_cpus: that Ray will declare.
        object_store_bytes: size of Ray's object store; None if Ray chooses it.
        shared_memory: where Linux keeps shared memory.

    Raises:
        RunError: it can't; the message names all reasons, and for each what to set.
    """
    problems = [*_folder_problems(temporary_folder), *_file_problems(num_cpus)]
    if sys.platform == "linux":
        problems += _shared_memory_problems(shared_memory, object_store_bytes)
    if problems:
        raise RunError("Ray cannot start on this machine:\n  " + "\n  ".join(problems))


def _folder_problems(folder: Path) -> Iterator[str]:
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name) == str(folder)), None)
    shown = f"{variable}={folder}" if variable else str(folder)
    room = max_folder_bytes()
    if len(os.fsencode(folder)) > room:
        yield (
            f"{shown}: the path is too long for the sockets of Ray ({len(os.fsencode(folder))} bytes, at most {room}). "
            "Set RAY_TMPDIR to a folder with a shorter path"
        )
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with TemporaryFile(dir=existing) as file:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, _SESSION_BYTES)
    except OSError as e:
        yield (
            f"{shown} cannot be written: {e.strerror}. Set RAY_TMPDIR to a writable folder with {_SESSION_BYTES >> 20} "
            "MB of free space"
        )


def _file_problems(num_cpus: int) -> Iterator[str]:
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES + _FILES_PER_CPU * num_cpus
    if limit != resource.RLIM_INFINITY and limit < needed:
        yield (
            f"a process may open {limit} files (`ulimit -Hn`); Ray with {num_cpus} CPUs needs {needed}. Raise the "
            "limit (Docker: --ulimit nofile=8192; systemd: LimitNOFILE=8192)"
        )


def _shared_memory_problems(folder: Path, object_store_bytes: int | None) -> Iterator[str]:
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as e:
        yield (
            f"{folder} cannot be written: {e.strerror}. Ray shares data between processes there. Mount a writable "
            f"tmpfs at {folder} (Docker: --shm-size=1g; Kubernetes: an emptyDir with medium: Memory)"
        )
        return
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    is_large = object_store_bytes is not None and object_store_bytes > max(free, _LARGE_OBJECT_STORE)
    if is_large and not os.environ.get("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE"):
        yield (
            f"compute.object_store_bytes: {object_store_bytes:,} is more than the {free:,} free bytes of {folder}. Set "
            "it to auto, or enlarge the tmpfs (Docker: --shm-size)"
        )
