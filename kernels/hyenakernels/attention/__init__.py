"""Softmax attention: causal over a sequence, of one new token each, and block by block."""
