"""Matrix products in FP8, applied to a model from outside.

frozen.py     projections at one byte per weight: frozen beside adapters, or with rounded inputs too
inference.py  loading a model in FP8: all projections and MLPs; or the Hyena input projections
              alone, by the fixed scales of a checkpoint, as Evo 2 was published
training.py   projections and MLPs of every block, with scales taken from the values at each step
"""
