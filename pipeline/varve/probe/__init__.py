"""Small models trained on a run's features: which layer knows most about a label."""
