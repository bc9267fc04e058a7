"""The jobs: sources of very many parts, each destination, and the proof that every row is there exactly once.

Every part has one row, and every shard of texts ends with an empty part. Invariant: the proof reads the files that
readers of the destination find, through the library of its format where it has one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from tests.bench.scale.sources import (
    bytes_below,
    files_of,
    iceberg_metadata,
    make_delta,
    make_iceberg,
    values,
    write_files,
    write_lance,
)
from tests.outputs import column, write_output
from varve.cli.corpus import model_folder
from varve.indexing.faiss.faiss_kind import num_lists
from varve.indexing.open_target import find_index
from varve.output.manifest import read_manifest
from varve.storage.object_store import Storage

WIDTH = 8


class Destination(Protocol):
    """A job for one kind of destination."""

    @property
    def can_be_written_ahead(self) -> bool:
        """Whether the parts are those of a job file."""
        ...

    def prepare(self, folder: Path, parts: int, shards: int) -> list[str]:
        """Write the source; returns the arguments of the command."""
        ...

    def parts_folder(self, folder: Path) -> Path | None:
        """Where a file for each finished part appears; None as long as there is none."""
        ...

    def num_files(self, parts: int, shards: int) -> int:
        """Number of these files at the end."""
        ...

    def check(self, folder: Path, parts: int, shards: int) -> None:
        """Check that every row is there exactly once.

        Raises:
            AssertionError: it is not.
        """
        ...

    def metadata(self, folder: Path) -> dict[str, int]:
        """What it is → bytes, of what describes the parts."""
        ...

    def manifest_folder(self, folder: Path) -> Path:
        """Folder of the output or of the index."""
        ...

    def seconds(self, folder: Path) -> dict[str, float]:
        """Phase of the last attempt → seconds, as its manifest states them."""
        ...


@dataclass(frozen=True)
class OfTexts:
    """A job of `varve embed`; `output` is its folder or its table."""

    kind: str  # folder, iceberg, delta or lance
    can_be_written_ahead: bool = True

    def prepare(self, folder: Path, parts: int, shards: int) -> list[str]:
        rows = parts // shards - 1
        files = [] if self.kind == "lance" else write_files(folder, rows, shards)
        if self.kind == "lance":
            write_lance(folder, rows, shards)
            table = f"lance+{folder}/docs.lance"
            source, output = {"table": table}, {"table": table}
        elif self.kind == "iceberg":
            make_iceberg(folder, files)
            source = {"table": "iceberg://scale/db.docs", "key": "doc_id"}
            output = {"table": "iceberg://scale/db.features"}
        elif self.kind == "delta":
            make_delta(folder)
            source = {"table": f"delta+{folder}/docs", "key": "doc_id"}
            output = {"table": f"delta+{folder}/features"}
        else:
            source, output = {"dataset": str(folder / "docs")}, {"path": str(folder / "out")}
        model = {"name": str(model_folder()), "max_tokens": 16}
        job = {
            "source": {**source, "text": "text"},
            "model": model,
            "features": {"e": {"pool": "mean", "dimensions": WIDTH}},
        }
        (folder / "job.yaml").write_text(json.dumps({**job, "output": {**output, "rows_per_part": 1}}))
        return ["embed", str(folder / "job.yaml"), "--json"]

    def parts_folder(self, folder: Path) -> Path | None:
        run = self._run(folder)
        return run / "data" if run and (run / "data").exists() else None

    def manifest_folder(self, folder: Path) -> Path:
        run = self._run(folder)
        assert run is not None
        return run

    def _run(self, folder: Path) -> Path | None:
        """The folder of the run."""
        roots = [folder / "out", folder / "docs.lance/_varve", folder / "features/varve", folder / "warehouse"]
        found = [job for root in roots if root.exists() for job in root.glob("**/_varve/job.json")]
        return found[0].parent.parent if found else None

    def num_files(self, parts: int, shards: int) -> int:
        return parts // shards * shards

    def check(self, folder: Path, parts: int, shards: int) -> None:
        rows = (parts // shards - 1) * shards
        if self.kind == "folder":
            found = values(sorted((folder / "out/data").iterdir()), ["shard", "row", "e"])
            keys = found["shard"].to_numpy() * (parts // shards - 1) + found["row"].to_numpy()
        elif self.kind == "lance":
            import lance

            found = lance.dataset(str(folder / "docs.lance")).to_table(["doc_id", "e"])
            keys = found["doc_id"].to_numpy()
        else:
            found = values(files_of(self.kind, folder), ["doc_id", "e"])
            keys = found["doc_id"].to_numpy()
        assert np.array_equal(np.sort(keys), np.arange(rows)), f"{self.kind}: rows are lost or doubled"
        assert not found["e"].null_count, f"{self.kind}: rows without a vector"

    def metadata(self, folder: Path) -> dict[str, int]:
        run = self.manifest_folder(folder)
        tables = {
            "iceberg": lambda: iceberg_metadata(folder),
            "delta": lambda: bytes_below(folder / "features/_delta_log"),
            "lance": lambda: bytes_below(folder / "docs.lance/_versions", folder / "docs.lance/_transactions"),
        }
        of_table = {"table": tables[self.kind]()} if self.kind in tables else {}
        history = max((file.stat().st_size for file in (run / "_varve/history").glob("*.json")), default=0)
        return {"manifest": (run / "_varve/manifest.json").stat().st_size, "history": history, **of_table}

    def seconds(self, folder: Path) -> dict[str, float]:
        manifest = read_manifest(Storage(str(self.manifest_folder(folder))))
        assert manifest is not None
        return manifest.seconds


@dataclass(frozen=True)
class OfVectors:
    """A build of `varve index`, of random vectors."""

    kind: str  # npy or faiss
    can_be_written_ahead: bool = False

    def prepare(self, folder: Path, parts: int, shards: int) -> list[str]:
        rows = parts // shards * shards
        vectors = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32)
        kept = {"doc_id": np.arange(rows)}
        write_output(
            folder / "source", {column("e", WIDTH): vectors}, kept, rows_per_part=1, shards=[parts // shards] * shards
        )
        options = ["--kind", f"IVF{num_lists(rows)},SQ8", "--recall", "0.5"] if self.kind == "faiss" else []
        return ["index", str(folder / "source"), "--to", f"{self.kind}:{folder}/index", *options]

    def parts_folder(self, folder: Path) -> Path | None:
        ids = folder / "index/ids"
        return ids if ids.exists() else None

    def num_files(self, parts: int, shards: int) -> int:
        return parts // shards * shards

    def check(self, folder: Path, parts: int, shards: int) -> None:
        rows, found = parts // shards * shards, find_index(f"{self.kind}:{folder}/index")
        assert found is not None, f"{self.kind}: no index is published"
        with found.open() as searcher:
            sample = np.random.default_rng(1).choice(rows, min(rows, 100), replace=False)
            assert searcher.rows(sample)["position"].to_pylist() == sample.tolist()
        failures = found.target.verify(found.record)
        assert not failures, failures[:3]
        stored = values(sorted((folder / "index/ids").iterdir()), ["position"])["position"].to_numpy()
        assert np.array_equal(np.sort(stored), np.arange(rows)), f"{self.kind}: rows are lost or doubled"
        assert self._num_vectors(folder) == rows, f"{self.kind}: vectors are lost or doubled"

    def _num_vectors(self, folder: Path) -> int:
        if self.kind == "npy":
            return sum(len(np.load(file, mmap_mode="r")) for file in (folder / "index").glob("*.npy"))
        import faiss

        return faiss.read_index(str(folder / "index/index.faiss")).ntotal

    def metadata(self, folder: Path) -> dict[str, int]:
        return {"manifest": (folder / "index/_varve/manifest.json").stat().st_size}

    def manifest_folder(self, folder: Path) -> Path:
        return folder / "index"

    def seconds(self, folder: Path) -> dict[str, float]:  # noqa: ARG002 (an index has none)
        return {}


DESTINATIONS: dict[str, Destination] = {
    **{kind: OfTexts(kind) for kind in ("folder", "iceberg", "delta", "lance")},
    **{kind: OfVectors(kind) for kind in ("npy", "faiss")},
}
