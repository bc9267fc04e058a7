"""Fixtures of the tests of lake tables."""

from tests.lake.backends import backend

__all__ = ["backend"]
