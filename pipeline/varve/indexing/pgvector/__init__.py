"""PostgreSQL with the extension pgvector as the target of an index."""
