"""Softmax attention: causal over a sequence, for one new token of each sequence, and by blocks."""
