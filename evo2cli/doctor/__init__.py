"""Self-tests of a machine; the work behind `evo2 doctor`."""
