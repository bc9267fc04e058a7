"""From a job file to what a cluster takes: infra's templates, filled in. Starts nothing, asks no cluster."""
