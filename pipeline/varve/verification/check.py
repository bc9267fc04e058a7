"""The result of one check of an output."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One property of an output.

    Attributes:
        name: of the check.
        failures: what contradicts the property.
        skipped: what was not checked, with the reason and what to do about it.
    """

    name: str
    failures: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no failure was found."""
        return not self.failures
