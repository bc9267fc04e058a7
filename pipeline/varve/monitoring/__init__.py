"""Monitoring of a run: counters, Prometheus metrics, the progress line, the bottleneck and the watchdog."""
