"""Featurizer and gates: what surrounds the inner convolution of every Hyena operator."""
