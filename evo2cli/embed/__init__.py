"""Embeddings of DNA; the work behind `evo2 embed`."""
