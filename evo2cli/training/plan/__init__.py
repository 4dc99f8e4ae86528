"""Formulas and measured rates that predict the memory and the time of a training step."""
