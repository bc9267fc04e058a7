"""The work of one process: read, tokenize, encode and write one part."""
