"""RMS normalization, by itself and of a residual sum: what stands before mixer and MLP."""
