"""User functions that a job names: hashed without being run, sent to workers as text, and imported from it."""
