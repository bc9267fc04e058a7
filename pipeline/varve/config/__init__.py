"""The job file as frozen types: what may stand in it, what it means, and how its mistakes are told.

Knows nothing of models, datasets or Ray: whether layer 13 exists is for columns.py, whether a column does for source/.
"""
