"""Finds, inspects and loads checkpoints from the Hugging Face Hub or a local folder."""
