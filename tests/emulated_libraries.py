"""The AVX-512 and AMX code of the encoder on a CPU that has neither: its sources, with emulated instructions.

tests/emulation/immintrin.h says what each instruction computes. Only matrix products and their epilogues are emulated,
because 512-bit code takes the compiler minutes where it is unrolled; the other sources are compiled for AVX2.
"""

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import torch

from varve.encoder.kernels.cpu_library import CpuLibrary

SOURCES = Path(__file__).parents[1] / "pipeline/varve/encoder/kernels/compiled"
EMULATION = Path(__file__).with_name("emulation")
KINDS = {
    ("amx", torch.float32): ["-DEMULATE_AMX"],
    ("avx512", torch.float32): [],
    ("amx", torch.bfloat16): ["-DEMULATE_AMX", "-DBFLOAT16"],
    ("avx512", torch.bfloat16): ["-DBFLOAT16"],
}
_FLAGS = ["-std=gnu11", "-fPIC", "-mavx2", "-mfma", "-Wno-psabi"]


def build_emulated(folder: Path) -> dict[tuple[str, torch.dtype], CpuLibrary]:
    """Compile and load every library with emulated instructions: (instructions, dtype) → library."""
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("*.so"))
    content = b"".join(file.read_bytes() for file in sorted(folder.glob("*.[ch]")))
    stamp = f'-DSOURCE_SHA256="{sha256(content).hexdigest()}"'
    others = [folder / name for name in ("attention.c", "embeddings.c", "layer.c", "means.c")]
    _compile("-O1", "-c", *others, cwd=folder)
    objects = [file.with_suffix(".o") for file in others]

    def build(kind: tuple[str, torch.dtype]) -> CpuLibrary:
        instructions, dtype = kind
        file = folder / (f"{instructions}.so" if dtype == torch.float32 else f"{instructions}_bfloat16.so")
        headers = [f"-I{EMULATION}", f"-I{folder}"]
        emulated = [folder / "linear.c", EMULATION / "library.c"]
        _compile("-O1", "-shared", stamp, *KINDS[kind], *headers, *emulated, *objects, "-lm", "-o", file, cwd=folder)
        library = CpuLibrary.load(instructions, dtype, folder)
        assert library is not None
        return library

    with ThreadPoolExecutor() as pool:
        return dict(zip(KINDS, pool.map(build, KINDS), strict=True))


def _compile(*arguments: object, cwd: Path) -> None:
    subprocess.run(["cc", *_FLAGS, *map(str, arguments)], cwd=cwd, check=True)
