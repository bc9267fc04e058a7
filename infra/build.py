"""Build hook of the wheel: compiles the encoder's inner loops, where there is a C compiler.

pip calls it through hatchling (pyproject.toml), for editable installs too. Invariant: a machine without a C compiler,
or with another processor than x86-64, gets a wheel that is whole without it: torch's own operations run there, slower.
"""

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
from hashlib import sha256
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("pipeline/varve/encoder/kernels/compiled")
INSTRUCTIONS = {
    "amx": ["-mavx512f", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    "avx512": ["-mavx512f"],
    "avx2": ["-mavx2", "-mfma"],
}


class CompiledHook(BuildHookInterface):
    """Adds what could be compiled to the wheel, which is then one for this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files of a wheel are gathered; `version` is "standard" or "editable"."""
        if version == "standard":  # an editable install reads the templates from the checkout
            build_data["force_include"]["jobs/templates"] = "varve/cli/deploy/templates"
        if built := [file for file in map(self._compile, INSTRUCTIONS) if file]:
            build_data["artifacts"] += [f"/{file.as_posix()}" for file in built]
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def _compile(self, instructions: str) -> Path | None:
        """The library for these instructions, beside the sources; None, with the reason on stderr, where that fails."""
        to = FOLDER / f"{instructions}.so"
        if platform.machine().lower() not in {"x86_64", "amd64"}:
            return None
        sources = sorted(Path(self.root, FOLDER).glob("*.[ch]"))
        stamp = f'-DSOURCE_SHA256="{sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()}"'
        compiler = shlex.split(os.environ.get("CC", "cc"))
        command = [
            *compiler,
            "-O3",
            "-std=gnu11",
            "-shared",
            "-fPIC",
            *INSTRUCTIONS[instructions],
            stamp,
            "-o",
            str(to),
        ]
        command += [str(FOLDER / file.name) for file in sources if file.suffix == ".c"] + ["-lm"]
        try:
            Path(self.root, to).unlink(missing_ok=True)
            subprocess.run(command, cwd=self.root, check=True, capture_output=True)  # noqa: S603 (the builder's compiler)
        except (OSError, subprocess.CalledProcessError) as e:
            said = getattr(e, "stderr", b"") or b""
            sys.stderr.write(
                f"{to} was not compiled, slower operations run in its place: {e}\n{said.decode(errors='replace')}"
            )
            return None
        return to
