"""The `evo2` command: tokenize, train, score, generate and convert with Evo 2 models."""

__version__ = "0.3.0"
