"""The models that a probe trains, and their metrics."""
