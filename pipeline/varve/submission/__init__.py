"""Submission of a job to a Ray cluster: the package that is sent, the client of the Jobs API, the cluster's checks."""
