"""Tables of data lakes: Iceberg, Delta and Lance behind one protocol."""
