"""Data augmentation with artificial repeats, so that a model learns to recall what it has read.

Natural genomes hold too few repeats for a small model to learn recall from them. One segment of a
window is copied over the bases further on:

    source  tokens[start : start + size]
    copy    tokens[start + distance : start + distance + size]    size <= distance

For a window of T bytes and numbers u, v, w drawn uniformly from [0, 1),

    size      log-uniform in MIN_SIZE ... min(longest, T // 2)    by u
    distance  log-uniform in size ... T - size                    by v
    start     uniform in 0 ... T - size - distance                by w

Of several repeats in a window, each copies what the ones before have left there.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evo2cli.data.documents import Bytes, Integers
from evo2cli.data.sampler import hashed, keyed_number
from evo2cli.data.tags import Flags
from evo2cli.genome.alphabet import ACGT, reverse_complement

MIN_SIZE = 16  # bases; shorter repeats occur by chance
MIN_LENGTH = 2 * MIN_SIZE  # of a window, in bytes
_IS_BASE = np.isin(np.arange(256), list(ACGT + ACGT.lower()))
_DRAWS = "window", "size", "distance", "start", "strand"


@dataclass(frozen=True)
class Repeats:
    """Inserts repeats into windows; those of a window depend on seed and sample number alone.

    Attributes:
        number: Mean number of repeats in a window: at least floor(number), and one more with the
            probability that is left.
        inverted: Fraction of the repeats that are inverted, i.e. reverse complements.
        seed: Determines windows, sizes, positions and strands.
        longest: Bases of the longest repeat; None for half a window.
    """

    number: float
    inverted: float
    seed: int
    longest: int | None = None

    def insert(self, tokens: Bytes, masked: Flags, samples: Integers) -> None:
        """Insert repeats into windows, in place.

        A repeat is left out if its source or target segment holds anything but A, C, G and T (N,
        the end of a document, a tag): nothing is copied across documents or from a gap.

        Args:
            tokens: The windows, case kept, [W, T] with T of at least `MIN_LENGTH`.
            masked: Bytes that belong to a tag, [W, T].
            samples: Sample numbers of the windows in the run, [W].
        """
        length = tokens.shape[1]
        longest = min(self.longest or length, length // 2)
        is_base = _IS_BASE[tokens] & ~masked
        for index in range(math.ceil(self.number)):
            drawn = {draw: self._uniform(draw, index, samples) for draw in _DRAWS}
            for row in np.flatnonzero(drawn["window"] < self.number - index).tolist():
                size = log_uniform(MIN_SIZE, longest, drawn["size"][row].item())
                distance = log_uniform(size, length - size, drawn["distance"][row].item())
                start = int(drawn["start"][row].item() * (length - size - distance + 1))
                source = slice(start, start + size)
                target = slice(start + distance, start + distance + size)
                if is_base[row, source].all() and is_base[row, target].all():
                    copy = tokens[row, source].tobytes()
                    if drawn["strand"][row] < self.inverted:
                        copy = reverse_complement(copy)
                    tokens[row, target] = np.frombuffer(copy, np.uint8)

    def _uniform(self, draw: str, index: int, samples: Integers) -> npt.NDArray[np.float64]:
        """A uniform number in [0, 1) for the repeat of that index in each sample, [W]."""
        key = ("repeats", draw, index) if index else ("repeats", draw)
        words = hashed(np.uint64(keyed_number(self.seed, *key)), samples)
        return (words >> np.uint64(11)) * np.float64(2**-53)


def log_uniform(low: int, high: int, uniform: float) -> int:
    """A log-uniform integer from low to high, both included.

    P(at most n) = log((n + 1) / low) / log((high + 1) / low).

    Args:
        low: At least 1.
        high: At least `low`.
        uniform: Drawn uniformly from [0, 1).
    """
    return min(high, int(low * ((high + 1) / low) ** uniform))
