"""RMS normalization of rows, and of the residual sum before a mixer or an MLP."""
