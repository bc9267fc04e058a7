"""Chaos over jobs, lake tables and indexes: `python -m tests.faults.chaos`.

A scenario is drawn from a seed: a kind of job (`kinds/`), a store (`stores.py`), a Ray, and faults at random times
(`faults.py`). A trial runs its command until it exits with 0, then compares the result with an undisturbed run.
"""
