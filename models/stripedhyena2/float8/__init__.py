"""Matrix products in FP8, applied to a model from outside.

inference.py  Hyena input projections by the fixed scales of a checkpoint, as Evo 2 was published
frozen.py     projections that stay frozen beside adapters, at a byte a weight
training.py   projections and MLPs of every block, with scales taken from the values at each step
"""
