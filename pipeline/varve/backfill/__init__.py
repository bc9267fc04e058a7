"""Runs whose source and destination are tables: what changed, what is encoded, one atomic commit."""
