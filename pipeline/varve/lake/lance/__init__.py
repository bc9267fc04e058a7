"""Lance datasets, through pylance."""
