"""Collections of a Qdrant server."""
