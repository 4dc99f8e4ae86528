"""Softmax attention: causal (prefill and training), decoding, paged, and by mergeable blocks."""
