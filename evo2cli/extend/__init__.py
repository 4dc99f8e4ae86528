"""Context extension; the work behind `evo2 extend`."""
