"""Layer outputs as vectors; the work behind `evo2 embed`."""
