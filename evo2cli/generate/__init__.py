"""Generation of DNA; the work behind `evo2 generate`."""
