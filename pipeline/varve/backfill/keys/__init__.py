"""Keys of rows: read, sorted into buckets, compared."""
