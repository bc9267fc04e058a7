"""Runs a backfill in a process that kills itself around a chosen step.

The steps are those after which a driver of a table can die: the selection is written, a part, a copy of a file with
stale rows, the staged snapshot, its check, the commit, the manifest.
"""

import os
import pkgutil
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from tests import finished_runs
from tests.faults.lance_build import Death
from tests.finished_runs import finish_table
from varve import Job
from varve.backfill import publish
from varve.backfill.sibling import SiblingBackfill
from varve.output import manifest
from varve.source.row_selection import RowSelection

# (owner, name) of the steps, in their order.
STEPS: dict[str, list[tuple[Any, str]]] = {
    "sibling": [
        (RowSelection, "save"),
        (finished_runs, "write_part"),
        (publish, "copy_live_rows"),
        (publish, "check_staged"),
        (SiblingBackfill, "publish"),
        (manifest, "publish"),
    ],
    "iceberg": [
        ("varve.lake.iceberg.iceberg_table.IcebergTable", "stage"),
        ("varve.lake.iceberg.iceberg_table.IcebergTable", "commit"),
    ],
    "delta": [("varve.lake.delta.delta_table.DeltaTable", "commit")],
    "lance": [
        (RowSelection, "save"),
        (finished_runs, "write_part"),
        ("varve.backfill.in_place.lance_columns", "write_fragment"),
        ("varve.backfill.in_place.lance_columns", "verify_fragment"),
        ("varve.lake.lance.commit.Commit", "update_columns"),
        ("varve.lake.lance.commit.Commit", "set_field_metadata"),
        (manifest, "publish"),
    ],
}


def steps_of(kind: str) -> list[tuple[Any, str]]:
    """The steps of a run of a format."""
    return STEPS["lance"] if kind == "lance" else STEPS["sibling"] + STEPS[kind]


def run_backfill(environment: Mapping[str, str], job: dict, kind: str, death: tuple[int, str] | None = None) -> None:
    """Run a job between tables to its end, or to its death.

    Args:
        environment: variables of the catalog.
        job: content of the job file.
        kind: iceberg, delta or lance.
        death: (number of the step, "before" or "after").
    """
    os.environ.update(environment)
    with ExitStack() as patches:
        if death:
            owner, name = steps_of(kind)[death[0]]
            target = f"{owner}.{name}" if isinstance(owner, str) else f"{_path_of(owner)}.{name}"
            wrapped = Death(0, death[1], calls=1)
            patches.enter_context(patch(target, wrapped.wrap(_resolve(target))))
        finish_table(Job.parse(job))


def _path_of(owner: Any) -> str:
    return owner.__name__ if not isinstance(owner, type) else f"{owner.__module__}.{owner.__qualname__}"


def _resolve(target: str) -> Any:
    return pkgutil.resolve_name(target)
