"""Hugging Face datasets and files: found, opened and read as Arrow tables."""
