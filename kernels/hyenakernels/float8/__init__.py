"""Tensors in FP8 with one scale each, in the layouts that tensor cores multiply."""
