"""Evaluations of a model; the work behind `evo2 eval`."""
