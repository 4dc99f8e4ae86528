"""A run that trains in seconds: its shape, and the part of its recipe that tests share."""

import tomllib

from stripedhyena2 import ModelConfig

SHAPE = """
stripes = "SMLA"
width = 16
num_heads = 2
mlp_width = 24
num_short_filter_groups = 4
num_medium_filter_groups = 4
context = 256
"""
CONFIG = ModelConfig(**tomllib.loads(SHAPE))
RECIPE = """
model = "tiny"
output = "run"
[data]
sources = [{ path = "tokens" }]
[batch]
length = 32
sequences = 4
[optimizer]
steps = 8
warmup_steps = 2
learning_rate = 1e-2
min_learning_rate = 1e-3
"""
