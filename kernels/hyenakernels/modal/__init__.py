"""Convolution with a sum of real exponentials, carried from chunk to chunk as a small state."""
