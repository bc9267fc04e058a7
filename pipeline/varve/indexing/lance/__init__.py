"""Lance datasets, which LanceDB opens as tables."""
