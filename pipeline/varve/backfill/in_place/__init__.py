"""Features as columns of the table that has the texts."""
