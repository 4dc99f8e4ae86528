"""Tensors in FP8, with one scale or a scale for each row, and products with weights in FP8."""
