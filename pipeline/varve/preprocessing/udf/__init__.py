"""The user's own code that a job names: found and hashed unrun, sent as text, run from it."""
