"""Convolution with any explicit long filter, by FFT."""
