"""All targets by name, in the order of their value."""

from tests.fuzz import checkpoints, indexes, job_files, lakes, outputs, servers, sources

FAMILIES = (job_files, checkpoints, outputs, indexes, lakes, sources, servers)
TARGETS = {target.name: target for family in FAMILIES for target in family.TARGETS}
