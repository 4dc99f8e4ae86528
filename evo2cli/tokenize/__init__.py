"""Convert FASTA or JSON lines to a token set; the work behind `evo2 tokenize`."""
