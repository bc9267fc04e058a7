"""Small models trained on a run's features: which layer predicts a label best."""
