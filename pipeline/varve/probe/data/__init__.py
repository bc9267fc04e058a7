"""Training data from a finished output: features, labels, groups and splits."""
