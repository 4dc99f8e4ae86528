"""Train a model from a recipe; the work behind `evo2 train`."""
