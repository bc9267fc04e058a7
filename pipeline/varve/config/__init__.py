"""The job file as frozen types: its keys, what each means, and error messages for wrong values.

Knows nothing of models, datasets or Ray: encoder/feature_plan.py checks whether a layer exists, source/ checks columns.
"""
