"""Featurizer and gates, which surround the inner convolution of every Hyena operator."""
