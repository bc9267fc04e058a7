"""The commands: one file each, run as `varve NAME` or `python -m varve NAME`."""
