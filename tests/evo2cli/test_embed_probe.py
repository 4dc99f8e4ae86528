"""`evo2 embed --probe`: which layer knows a label."""
