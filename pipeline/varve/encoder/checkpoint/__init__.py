"""A checkpoint on the Hub or on disk: inspected, then loaded."""
