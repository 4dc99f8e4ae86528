"""Reproducible random DNA: random bases, substitutions, and random windows of a genome.

A draw is derived from a hash of its labels alone: it is the same on every machine and with every
library version, and independent of other draws.
"""

import hashlib
from pathlib import Path

import numpy as np

from evo2cli.data.sampler import keyed_number
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import ACGT, upper_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference

MAX_ATTEMPTS = 200  # draws of one window until it holds only A, C, G and T

Label = str | int


def draw_bases(count: int, *labels: Label) -> bytes:
    """A, C, G and T, uniform and independent: two bits each of SHAKE-256 of the labels."""
    digest = hashlib.shake_256("/".join(map(str, labels)).encode()).digest(-(-count // 4))
    octets = np.frombuffer(digest, np.uint8)
    codes = octets[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return bytes(np.frombuffer(ACGT, np.uint8)[codes.reshape(-1)[:count]])


def draw_substitutions(bases: bytes, count: int, *labels: Label) -> bytes:
    """Substitute `count` of the bases, which gives a sequence at Hamming distance `count`.

    Args:
        bases: A, C, G and T.
        count: Number of substitutions, at most the number of bases.
        labels: Different labels give different positions and bases.
    """
    order = sorted(range(len(bases)), key=lambda index: keyed_number(*labels, "place", index))
    mutated = bytearray(bases)
    for index in order[:count]:
        others = ACGT.replace(bases[index : index + 1], b"")
        mutated[index] = others[keyed_number(*labels, "base", index) % len(others)]
    return bytes(mutated)


def draw_window(genome: Reference, path: Path, length: int, *labels: Label) -> bytes:
    """Draw an upper-case window of a genome that contains only A, C, G and T.

    All such windows of all contigs are equally likely.

    Args:
        genome: Genome to draw from.
        path: Its file, for error messages.
        length: Bases of the window.
        labels: Different labels give different windows.

    Raises:
        UserError: No contig is that long, or none of `MAX_ATTEMPTS` windows is free of other
            letters.
    """
    num_starts = {name: max(0, genome.length(name) - length + 1) for name in genome.names}
    total = sum(num_starts.values())
    if not total:
        longest = max((genome.length(name) for name in genome.names), default=0)
        raise UserError(
            f"{path}: no contig holds a window of {length:,} bases, the longest has {longest:,}; "
            "ask for a shorter one"
        )
    for attempt in range(MAX_ATTEMPTS):
        start = keyed_number(*labels, attempt) % total  # among the starts of all contigs in order
        for name, count in num_starts.items():
            if start < count:
                interval = Interval(name, start, start + length)
                break
            start -= count
        bases = upper_dna(genome.fetch(interval))
        if not bases.translate(None, ACGT):
            return bases
    raise UserError(
        f"{path}: {MAX_ATTEMPTS} windows of {length:,} bases were tried, and all hold letters "
        "other than ACGT; ask for a shorter one"
    )
