"""One changed file, its JSON form, and what a reader made of it."""

import base64
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

FOUND = Path(__file__).parent / "found"
FINE = ("accepted", "refused")


@dataclass(frozen=True, slots=True)
class Case:
    """A target, the file that is changed, relative to its folder, and the content."""

    target: str
    file: str
    content: bytes

    def encode(self) -> str:
        """As JSON, readable if the content is text."""
        try:
            shown = {"text": self.content.decode("ascii")}
        except UnicodeDecodeError:
            shown = {"base64": base64.b64encode(self.content).decode()}
        return json.dumps({"target": self.target, "file": self.file, **shown}, indent=1) + "\n"

    @classmethod
    def decode(cls, text: str) -> "Case":
        """The inverse of `encode`."""
        saved = json.loads(text)
        content = saved["text"].encode() if "text" in saved else base64.b64decode(saved["base64"])
        return cls(saved["target"], saved["file"], content)


def found_cases(target: str) -> dict[str, Case]:
    """Cases of earlier findings: path below `found` → case."""
    files = sorted((FOUND / target).glob("*.json"))
    return {f"{target}/{file.name}": Case.decode(file.read_text()) for file in files}


@dataclass(slots=True)
class Results:
    """Of a process or several: outcome → number of cases, by target; the smallest case of each finding."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    findings: dict[str, tuple[str, Case]] = field(default_factory=dict)  # what was wrong → (details, case)
    replayed: dict[str, str] = field(default_factory=dict)  # case of an earlier finding → outcome
    peak_mb: dict[str, int] = field(default_factory=dict)  # target → largest additional memory of a case
    seconds: dict[str, float] = field(default_factory=dict)  # target → of all cases

    def add(self, case: Case, outcome: str, details: str = "") -> None:
        """Count a case; keep it if it is a finding that is new, or smaller than the one that is kept."""
        self.counts.setdefault(case.target, Counter())[outcome if outcome in FINE else "finding"] += 1
        if outcome in FINE:
            return
        key = f"{case.target}: {outcome}"
        if key not in self.findings or len(case.content) < len(self.findings[key][1].content):
            self.findings[key] = (details, case)

    def merge(self, other: "Results") -> None:
        """Add the results of another process."""
        for target, counts in other.counts.items():
            self.counts.setdefault(target, Counter()).update(counts)
        for target, peak in other.peak_mb.items():
            self.peak_mb[target] = max(peak, self.peak_mb.get(target, 0))
        for target, seconds in other.seconds.items():
            self.seconds[target] = seconds + self.seconds.get(target, 0.0)
        self.replayed |= other.replayed
        for key, found in other.findings.items():
            if key not in self.findings or len(found[1].content) < len(self.findings[key][1].content):
                self.findings[key] = found

    def merged(self, other: "Results") -> "Results":
        """The results of both, as new ones."""
        both = Results()
        both.merge(self)
        both.merge(other)
        return both
