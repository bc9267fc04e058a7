"""Fixtures of the tests of lake tables."""

from tests.lake.backends import backend
from tests.lake.features import features, prepared

__all__ = ["backend", "features", "prepared"]
