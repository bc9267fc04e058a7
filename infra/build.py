"""Build hook of the wheel: compiles the encoder's CPU kernels if there is a C compiler.

pip runs it through hatchling (pyproject.toml), also for editable installs. Invariant: without a C compiler, or on
another processor than x86-64, the wheel is complete without compiled code; torch's slower operations replace it.
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
# The same sources with weights in bfloat16.
INSTRUCTIONS |= {
    "amx_bfloat16": [*INSTRUCTIONS["amx"], "-DBFLOAT16"],
    "avx512_bfloat16": ["-mavx512f", "-mavx512bf16", "-DBFLOAT16"],
}


class CompiledHook(BuildHookInterface):
    """Adds the compiled libraries to the wheel, which is then specific to this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files of a wheel are collected; `version` is "standard" or "editable"."""
        if version == "standard":  # an editable install reads the templates from the checkout
            build_data["force_include"]["jobs/templates"] = "varve/cli/deploy/templates"
        if libraries := [file for file in map(self._compile, INSTRUCTIONS) if file]:
            build_data["artifacts"] += [f"/{file.as_posix()}" for file in libraries]
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def _compile(self, instructions: str) -> Path | None:
        """Compile a library next to its sources; on failure None, with the reason on stderr."""
        library = FOLDER / f"{instructions}.so"
        if platform.machine().lower() not in {"x86_64", "amd64"}:
            return None
        sources = sorted(Path(self.root, FOLDER).glob("*.[ch]"))
        stamp = f'-DSOURCE_SHA256="{sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()}"'
        command = [*shlex.split(os.environ.get("CC", "cc")), "-O3", "-std=gnu11", "-shared", "-fPIC"]
        command += [*INSTRUCTIONS[instructions], stamp, "-o", str(library)]
        command += [str(FOLDER / file.name) for file in sources if file.suffix == ".c"] + ["-lm"]
        try:
            Path(self.root, library).unlink(missing_ok=True)
            subprocess.run(command, cwd=self.root, check=True, capture_output=True)  # noqa: S603 (the user's compiler)
        except (OSError, subprocess.CalledProcessError) as e:
            output = (getattr(e, "stderr", b"") or b"").decode(errors="replace")
            sys.stderr.write(f"{library} was not compiled, torch's slower operations are used instead: {e}\n{output}")
            return None
        return library
