"""Longer contexts; the work behind `evo2 extend`."""
