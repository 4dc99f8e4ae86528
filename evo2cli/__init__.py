"""The `evo2` command: tokens, training, scoring, generation and conversion for Evo 2 models."""

__version__ = "0.3.0"
