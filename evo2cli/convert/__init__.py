"""`evo2 convert`: checkpoints from any layout into the four that are written."""
