"""HNSW graphs in USearch's file format."""
