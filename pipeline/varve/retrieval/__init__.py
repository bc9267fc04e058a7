"""Search of an output or an index: queries, exact and approximate neighbours, fusion, relevance."""
