"""Indexes of the FAISS library: files that plain `faiss.read_index` reads, built by parts."""
