"""Everything that is settled before the first row is read."""
