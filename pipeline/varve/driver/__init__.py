"""A run of a job, from the job to the published manifest."""
