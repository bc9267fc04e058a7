"""A job handed over to a cluster through the Jobs API of its head."""
