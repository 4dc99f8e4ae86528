"""Random DNA for tests of fine-tuning data."""

import numpy as np
from numpy.random import Generator

from evo2cli.genome.alphabet import reverse_complement


def draw(generator: Generator, length: int) -> str:
    return bytes(np.frombuffer(b"ACGT", np.uint8)[generator.integers(0, 4, length)]).decode()


def mutated(generator: Generator, sequence: str, count: int) -> str:
    letters = list(sequence)
    for place in generator.choice(len(letters), count, replace=False):
        letters[place] = "ACGT"[("ACGT".index(letters[place]) + 1) % 4]
    return "".join(letters)


def turned(sequence: str) -> str:
    return reverse_complement(sequence.encode()).decode()
