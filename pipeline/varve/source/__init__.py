"""Where the texts come from: a Hugging Face dataset, found, opened and read."""
