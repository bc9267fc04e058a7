"""Text rows to token ids, and the columns that the user's functions compute."""
