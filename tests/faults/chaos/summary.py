"""Counts of scenarios, faults and failed requests, by kind of job and by store; as tables in Markdown."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.chaos.faults import FAULTS
from tests.faults.chaos.scenario import Scenario

_SCENARIOS = "scenarios"
REQUEST = "request "  # before the name of a fault of requests


@dataclass
class Summary:
    """What has happened so far; with a file, also what earlier commands with this file have counted.

    Attributes:
        counts: (kind of job, store, Ray) → count of what happened to it, by name.
    """

    file: Path | None = None
    counts: dict[tuple[str, ...], Counter[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the file."""
        if self.file and self.file.exists():
            self.counts = {tuple(row.pop("of")): Counter(row["counts"]) for row in json.loads(self.file.read_text())}

    def add(self, scenario: Scenario, counts: Mapping[str, int]) -> None:
        """Count one scenario that has ended, and write the file."""
        found = self.counts.setdefault((scenario.kind, scenario.setting.store, scenario.ray), Counter())
        found.update({**counts, _SCENARIOS: 1})
        if self.file:
            rows = [{"of": key, "counts": value} for key, value in sorted(self.counts.items())]
            self.file.write_text(json.dumps(rows, indent=1))

    def lines(self) -> Iterator[str]:
        """The tables: by kind of job, by store, and by fault."""
        for position, title in enumerate(("job", "store", "Ray")):
            yield from self._table(title, position)
        total = sum(self.counts.values(), Counter())
        yield "| fault | count |\n| --- | --- |"
        yield from (f"| {name} | {total[name]:,} |" for name in sorted(total) if name != _SCENARIOS)
        never = [name for name in FAULTS if not total[name]]
        yield f"\nnever: {', '.join(never)}" if never else ""
        faults, requests = _num_faults(total), _num_requests(total)
        yield f"{total[_SCENARIOS]:,} scenarios, {faults:,} faults, {requests:,} failed requests"

    def _table(self, title: str, position: int) -> Iterator[str]:
        yield f"| {title} | scenarios | faults | failed requests |\n| --- | --- | --- | --- |"
        for name in sorted({key[position] for key in self.counts}):
            of = sum((counts for key, counts in self.counts.items() if key[position] == name), Counter())
            yield f"| {name} | {of[_SCENARIOS]:,} | {_num_faults(of):,} | {_num_requests(of):,} |"
        yield ""


def _num_faults(counts: Counter[str]) -> int:
    """Those at a moment."""
    return sum(counts[name] for name in FAULTS)


def _num_requests(counts: Counter[str]) -> int:
    return sum(count for name, count in counts.items() if name.startswith(REQUEST))
