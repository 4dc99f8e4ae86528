"""FP8 matrix products, applied to a model from outside.

frozen.py     projections with FP8 weights: for training of adapters, or with FP8 inputs too
inference.py  loading a model in FP8: all projections and MLPs; or only the Hyena input projections,
              with the fixed scales of a checkpoint, as Evo 2 was published
training.py   projections and MLPs of every block, with scales from the current amax at each step
"""
