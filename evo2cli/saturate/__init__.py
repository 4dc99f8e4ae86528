"""Every SNV of a region; the work behind `evo2 saturate`."""
