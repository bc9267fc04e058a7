"""Runs of very many parts with an encoder that does nothing: what is left is the driver, Ray and the metadata.

`destinations.py` are the jobs, `idle_driver.py` is the process that runs one, `driver_watch.py` observes and kills it.
"""
