"""Predict the memory and time of a training step from formulas and measured rates."""
