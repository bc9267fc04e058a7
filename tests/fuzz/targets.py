"""All targets by name, in the order of their value."""

from tests.fuzz import checkpoints, hub, indexes, job_files, lakes, outputs, publications, searches, servers, sources

FAMILIES = (job_files, checkpoints, outputs, indexes, lakes, sources, servers, hub, searches, publications)
TARGETS = {target.name: target for family in FAMILIES for target in family.TARGETS}
