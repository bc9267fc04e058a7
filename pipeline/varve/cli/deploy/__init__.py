"""Fills in jobs/templates for a job. Starts nothing and contacts no cluster."""
