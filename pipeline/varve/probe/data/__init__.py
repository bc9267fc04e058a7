"""A finished output as training data: features, labels, groups and splits."""
