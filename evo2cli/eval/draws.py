"""DNA drawn by name: random bases, and windows of a genome.

What a draw gives is a function of its labels alone, on every machine and under any library version:
it is read off a hash of them. No draw depends on another.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from evo2cli.data.order import keyed_number
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.windows import upper_dna

ATTEMPTS = 200  # draws of one window, until it holds A, C, G and T alone

Label = str | int


def draw_bases(count: int, *labels: Label) -> bytes:
    """A, C, G and T, uniform and independent: two bits each of SHAKE-256 of the labels."""
    digest = hashlib.shake_256("/".join(map(str, labels)).encode()).digest(-(-count // 4))
    octets = np.frombuffer(digest, np.uint8)
    codes = octets[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return bytes(np.frombuffer(ACGT, np.uint8)[codes.reshape(-1)[:count]])


def draw_window(genome: Reference, path: Path, length: int, *labels: Label) -> bytes:
    """`length` bases of a genome, upper case, where nothing but A, C, G and T stands.

    All such places in all contigs are equally likely.

    Raises:
        UserError: No contig is so long, or none of `ATTEMPTS` places is free of other letters.
    """
    places = {name: max(0, genome.length(name) - length + 1) for name in genome.names}
    total = sum(places.values())
    if not total:
        longest = max((genome.length(name) for name in genome.names), default=0)
        raise UserError(
            f"{path}: no contig holds a window of {length:,} bases, the longest has {longest:,}; "
            "ask for a shorter one"
        )
    for attempt in range(ATTEMPTS):
        place = keyed_number(*labels, attempt) % total
        bases = upper_dna(genome.fetch(_window_at(place, places, length)))
        if not bases.translate(None, ACGT):
            return bases
    raise UserError(
        f"{path}: {ATTEMPTS} windows of {length:,} bases were tried, and all hold letters other "
        "than ACGT; ask for a shorter one"
    )


def _window_at(place: int, places: Mapping[str, int], length: int) -> Interval:
    """The window at a place of all contigs' places, laid end to end."""
    for name, count in places.items():
        if place < count:
            return Interval(name, place, place + length)
        place -= count
    raise AssertionError(place)
