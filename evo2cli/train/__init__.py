"""Training a model by a recipe; the work behind `evo2 train`."""
