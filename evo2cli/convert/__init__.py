"""Convert checkpoints between layouts; the work behind `evo2 convert`."""
