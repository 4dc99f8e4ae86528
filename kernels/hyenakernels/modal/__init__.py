"""Convolution with a sum of real exponentials, whose past is a small state."""
