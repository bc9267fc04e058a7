"""Counters, metrics, the progress line and the watchdog of a run."""
