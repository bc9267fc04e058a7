"""Delta tables, through deltalake."""
