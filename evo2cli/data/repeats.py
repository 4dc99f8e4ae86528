"""Copies that are put into windows, so that a model learns to recall what it has read.

Natural genomes repeat themselves too seldom for a small model to learn it from them. A window gets
one copy of an earlier piece of itself, in place of the bases that stood there:

    piece  tokens[start : start + size]
    copy   tokens[start + distance : start + distance + size]    size <= distance

For a window of T bytes and numbers u, v, w drawn uniformly from [0, 1),

    size      log-uniform in MIN_SIZE ... T // 2            by u
    distance  log-uniform in size ... T - size              by v
    start     uniform in 0 ... T - size - distance          by w
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evo2cli.data.documents import Bytes, Integers
from evo2cli.data.order import hashed, keyed_number
from evo2cli.data.tags import Flags
from evo2cli.genome.alphabet import ACGT, reverse_complement

MIN_SIZE = 16  # bases; a shorter piece stands somewhere before by chance
MIN_LENGTH = 2 * MIN_SIZE  # of a window
_IS_BASE = np.isin(np.arange(256), list(ACGT + ACGT.lower()))
_Draw = Literal["window", "size", "distance", "start", "strand"]


@dataclass(frozen=True)
class Repeats:
    """How often windows get a copy. What a window gets depends on seed and sample alone.

    Attributes:
        share: Probability that a window gets one.
        inverted: Share of the copies that are reverse complements of their piece.
        seed: Selects windows, sizes, places and strands.
    """

    share: float
    inverted: float
    seed: int

    def put(self, tokens: Bytes, masked: Flags, samples: Integers) -> None:
        """Put the copies into windows, in place.

        A window keeps its own bases if piece or place have anything but A, C, G and T (N, the end
        of a document, a tag): nothing is copied across documents or from a gap.

        Args:
            tokens: The windows, case kept, [W, T] with T of at least `MIN_LENGTH`.
            masked: Bytes that belong to a tag, [W, T].
            samples: Numbers of the windows in the run, [W].
        """
        length = tokens.shape[1]
        free = _IS_BASE[tokens] & ~masked
        for row in np.flatnonzero(self._uniform("window", samples) < self.share).tolist():
            sample = samples[row : row + 1]
            size = log_uniform(MIN_SIZE, length // 2, self._uniform("size", sample).item())
            distance = log_uniform(size, length - size, self._uniform("distance", sample).item())
            start = int(self._uniform("start", sample).item() * (length - size - distance + 1))
            piece = slice(start, start + size)
            place = slice(start + distance, start + distance + size)
            if free[row, piece].all() and free[row, place].all():
                copy = tokens[row, piece].tobytes()
                if self._uniform("strand", sample).item() < self.inverted:
                    copy = reverse_complement(copy)
                tokens[row, place] = np.frombuffer(copy, np.uint8)

    def _uniform(self, draw: _Draw, samples: Integers) -> npt.NDArray[np.float64]:
        """A number in [0, 1) for each sample, [W]."""
        words = hashed(np.uint64(keyed_number(self.seed, "repeats", draw)), samples)
        return (words >> np.uint64(11)) * np.float64(2**-53)


def log_uniform(low: int, high: int, uniform: float) -> int:
    """An integer from low to high, log-uniform.

    P(at most n) = log((n + 1) / low) / log((high + 1) / low).

    Args:
        low: At least 1.
        high: At least `low`.
        uniform: Drawn uniformly from [0, 1).
    """
    return min(high, int(low * ((high + 1) / low) ** uniform))
