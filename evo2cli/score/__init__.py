"""Log-likelihoods of sequences and variants; the work behind `evo2 score`."""
