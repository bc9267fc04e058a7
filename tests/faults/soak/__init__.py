"""Long runs whose processes are measured: `python -m tests.faults.soak`.

A job (`soaked_job.py`) has an endless source; `samples.py` measures its processes by role, `plots.py` draws them.
"""
