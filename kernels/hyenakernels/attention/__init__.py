"""Softmax attention: causal for prefill and training, decoding, over a pool, and by blocks."""
