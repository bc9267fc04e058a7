"""Reports with given content, without an output: for the page and its sentences."""

from dataclasses import replace

import numpy as np

from varve.exploration.measures.content import Content, DuplicatePair, NeighbourList
from varve.exploration.measures.layer_similarity import LayerSimilarity
from varve.exploration.measures.text_statistics import ErrorGroup, Repeat, RowText, TextStatistics, WindowEffect
from varve.exploration.measures.vector_statistics import VectorStatistics
from varve.exploration.report import Report
from varve.monitoring.run_history import History, PartSpan, ReplicaHistory
from varve.output.manifest import Manifest
from varve.output.part_table import PartTable
from varve.pages.scatter_map import MapLayer

LAYERS = 7


def example_manifest(**changes) -> Manifest:
    values = {
        "path": "/data/features",
        "fingerprint": "f" * 64,
        "started_at": "2026-01-01T00:00:00+00:00",
        "finished_at": "2026-01-01T00:10:00+00:00",
        "num_rows": 1000,
        "num_tokens": 52_000,
        "num_errors": 50,
        "num_null_texts": 0,
        "num_truncated": 120,
        "file_bytes": 12_000_000,
        "counts": {"repeats": 12, "lost": 1},
        "error_reasons": {"worker died": 50},
        "storage": {"create_if_absent": True, "retries": 0},
        "seconds": {},
        "stages": {
            "read": {"work_s": 1.0, "at_once": 1, "busy": 0.1},
            "encode": {"work_s": 90.0, "at_once": 2, "busy": 0.9},
            "bottleneck": "encode",
        },
        "encoder": {"device": "cpu", "dtype": "float32", "layout": "packed"},
        "canary": {"rows": 16, "passed": True, "features": {"cls_06": {"relative": 2e-6, "cosine": 1.0}}},
        "versions": {"torch": "2.13.0", "varve": "0.2.0"},
        "job": {"source": {"text": "text"}, "model": {"name": "a-model"}},
        "resolved": {"weights_sha256": "w" * 64, "max_tokens": 128},
        "parts": PartTable.of(()),
        "sha256": "a" * 64,
    }
    return Manifest(**{**values, **changes})


def example_history(*, started_at=1_790_000_000.0, outcome="finished", slow_from_s=None, seconds=60) -> History:
    """Two replicas with parts of four seconds from the fifth second on; half as fast from a time on."""
    parts, tokens = [], np.zeros((2, seconds), np.int64)
    for replica in range(2):
        begun_s, number = 5.0, 0
        while begun_s < seconds - 2:
            lasts_s = 8.0 if slow_from_s is not None and begun_s >= slow_from_s else 4.0
            ended_s = begun_s + lasts_s if begun_s + lasts_s < seconds - 1 else None
            parts.append(
                PartSpan(shard=replica, start=100 * number, stop=100 * number + 100, replica=replica, begun_s=begun_s,
                         ended_s=ended_s, tokens=4000 if ended_s else 1000, errors=5)
            )  # fmt: skip
            until = int(begun_s + lasts_s) if ended_s else seconds
            tokens[replica, int(begun_s) : until] = 4000 // lasts_s
            begun_s, number = begun_s + lasts_s, number + 1
    per_bin = tokens.sum(0)
    return History(
        started_at=started_at,
        updated_s=float(seconds),
        outcome=outcome,
        reason="",
        before_s={"ray": 1.5, "plan": 0.7},
        bin_s=1.0,
        rows=tuple((per_bin // 50).tolist()),
        tokens=tuple(per_bin.tolist()),
        errors=tuple((per_bin // 1000).tolist()),
        stages={"read": tuple([0.05] * seconds), "encode": tuple(np.where(per_bin > 0, 1.9, 0.0).tolist())},
        replicas=tuple(
            ReplicaHistory(number=n, node=f"10.0.0.{n + 1}", ready_s=(4.0,), tokens=tuple(tokens[n].tolist()))
            for n in range(2)
        ),
        parts=tuple(sorted(parts, key=lambda each: each.begun_s)),
        parts_left_out=0,
        events=(),
    )


def example_report(*, texts: list[str] | None = None, name="cls", **changes) -> Report:
    """A report whose texts, names and labels can be given."""
    rng = np.random.default_rng(0)
    texts = texts or [f"Return the mean of column {number}." for number in range(300)]
    names = [f"{name}_{layer:02d}" for layer in range(LAYERS)]
    rows = [RowText(0, number, text, texts[0]) for number, text in enumerate(texts)]
    similarity = np.exp(-np.abs(np.subtract.outer(np.arange(LAYERS), np.arange(LAYERS))) / 3)
    report = Report(
        path="/data/features",
        manifest=example_manifest(),
        histories=(example_history(),),
        texts=TextStatistics(
            num_encoded=950,
            length_edges=tuple(float(edge) for edge in range(0, 130, 8)),
            length_counts=tuple(rng.integers(0, 120, 16).tolist()),
            max_tokens=128,
            num_truncated=120,
            windows=WindowEffect(60, 85.0, 0.4, 1.9),
            scripts=(("Latin", 0.93), ("Cyrillic", 0.05), ("Han", 0.02)),
            repeats=(Repeat(texts[0], 9, 0, 3), Repeat(texts[-1], 4, 0, 8)),
            errors=(ErrorGroup("worker died", 50, tuple(rows[:2])),),
            num_texts=300,
            no_texts=None,
        ),
        vectors=tuple(
            VectorStatistics(
                name=each, family=name, layer=layer, width=384, dtype="float32", form="vector", num_vectors=950,
                norm_edges=tuple(np.linspace(0, 10, 21).tolist()), norm_counts=tuple(rng.integers(0, 90, 20).tolist()),
                mean_norm=5.0 + layer, spectrum=tuple((0.3 * 0.8 ** np.arange(64)).tolist()),
                effective_rank=30.0 + 10 * layer, anisotropy=0.1 * layer, canary={"relative": 2e-6, "cosine": 1.0},
            )
            for layer, each in enumerate(names)
        ),
        similarity=LayerSimilarity(tuple(names), similarity, 950),
        content=Content(
            feature=names[-1],
            neighbours=(NeighbourList(rows[0], tuple((row, 0.9 - 0.1 * at) for at, row in enumerate(rows[1:4]))),),
            near_duplicates=(DuplicatePair(rows[0], rows[-1], 0.991),),
            num_near_duplicates=1,
            num_equal=0,
            num_compared=950,
            threshold=0.95,
            layers=tuple(
                MapLayer(each, name, layer, rng.standard_normal((len(texts), 2)), (0.2, 0.1))
                for layer, each in enumerate(names)
            ),
            classes=("one", "two", texts[0]),
            labels=tuple(rng.integers(0, 3, len(texts)).tolist()),
            texts=tuple(texts),
            rows=tuple((row.shard, row.row) for row in rows),
            color="topic",
        ),
        num_sampled=950,
        seed=0,
        price_per_hour=None,
    )  # fmt: skip
    return replace(report, **changes)
