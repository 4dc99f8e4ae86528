"""A value for every base of a sequence; the work behind `evo2 track`."""
