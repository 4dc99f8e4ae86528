"""Samplers: map the j-th sample of a run to a window of a source, without storing a permutation.

A shuffled order is a keyed bijection, so each of its elements is computed on its own, in O(1) time
and memory. All hashing is written out here, because a resumed run must see the same order with any
version of any library.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evo2cli.data.documents import Integers

PERIOD = 1 << 16  # samples
_ROUNDS = 6
_UNITS = 1 << 32  # resolution of shares: units per sample
_STRIDE = 2654435769  # odd and near _UNITS / golden ratio, so that periods spread evenly
_ONE, _GOLDEN = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio
_Words = npt.NDArray[np.uint64]


def keyed_number(*key: int | str) -> int:
    """A hash of the key in [0, 2**64), the same on every machine."""
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hashed(key: _Words | np.uint64, numbers: Integers) -> _Words:
    """A pseudorandom word for each number, [S]; for one key, different numbers never collide.

    Source: splitmix64.
    """
    words = key + (numbers.astype(np.uint64) + _ONE) * _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def shuffled(positions: Integers, sizes: Integers, keys: _Words) -> Integers:
    """The element at each position of a keyed random permutation of [0, size), [S].

    A Feistel network permutes [0, n) with n the next power of four; a result outside [0, size) goes
    through it again until it is inside (cycle walking), which takes at most 4 passes on average.

    Args:
        positions: Each below its size, [S].
        sizes: At most 2**52, [S].
        keys: Each selects a permutation, [S].
    """
    permuted, outside = positions.copy(), np.arange(len(positions))
    half = (np.frexp(np.maximum(sizes - 1, 1))[1].astype(np.uint64) + _ONE) >> _ONE
    while len(outside):
        permuted[outside] = _feistel(permuted[outside], half[outside], keys[outside])
        outside = outside[permuted[outside] >= sizes[outside]]
    return permuted


def _feistel(numbers: Integers, half: _Words, keys: _Words) -> Integers:
    """A keyed permutation of [0, 4**half)."""
    low = (_ONE << half) - _ONE
    words = numbers.astype(np.uint64)
    left, right = words >> half, words & low
    for turn in range(_ROUNDS):
        word = hashed(keys + np.uint64(turn), right.astype(np.int64))
        left, right = right, left ^ (word & low)
    return ((left << half) | right).astype(np.int64)


@dataclass(frozen=True)
class Locations:
    """The windows that S samples are read from.

    Attributes:
        source: Index of the source, [S].
        epoch: Epoch of that source, i.e. complete passes over it before this sample, [S].
        window: Index of the window within the source, [S].
    """

    source: Integers
    epoch: Integers
    window: Integers


class WindowSampler(Protocol):
    """Maps the samples of a run to windows of its sources."""

    def locate(self, samples: Integers) -> Locations:
        """The windows of samples (0-based numbers, in any order)."""

    def epochs(self, samples: int) -> tuple[float, ...]:
        """Number of passes over each source in the first `samples` samples."""


class PooledSampler:
    """Shuffles the windows of all sources together; each window is read once per epoch.

    Args:
        counts: Number of windows of each source.
        seed: Seed of the shuffle.
    """

    def __init__(self, counts: Sequence[int], seed: int) -> None:
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._starts = self._ends - counts
        self._key = np.uint64(keyed_number(seed, "windows"))

    def locate(self, samples: Integers) -> Locations:
        """As `WindowSampler`."""
        total = np.full_like(samples, self._ends[-1])
        epoch, position = np.divmod(samples, total)
        window = shuffled(position, total, hashed(self._key, epoch))
        source = np.searchsorted(self._ends, window, side="right")
        return Locations(source, epoch, window - self._starts[source])

    def epochs(self, samples: int) -> tuple[float, ...]:
        """As `WindowSampler`."""
        return (samples / int(self._ends[-1]),) * len(self._ends)


class MixtureSampler:
    """Draws from each source in proportion to its weight; each source is shuffled on its own.

    In each period of PERIOD samples a source has its exact share, rounded up or down by a fixed
    pattern, so that over time every share is exact, however small. (Rounding each period by largest
    remainders would never draw from a source whose weight is below 1 / PERIOD.)

    With q_i * PERIOD = b_i + r_i, S_i = r_1 + ... + r_i and stride a, source i has in period p
        b_i + floor(S_i + p a) - floor(S_{i-1} + p a)    samples, which sum to PERIOD over all i.

    Args:
        counts: Number of windows of each source.
        weights: Weight of each source, positive; only their ratios matter.
        seed: Seed of the shuffles.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self._counts = np.array(counts, np.int64)
        self._slot_key = np.uint64(keyed_number(seed, "deal"))
        keys = [keyed_number(seed, "windows", source) for source in range(len(counts))]
        self._keys = np.array(keys, np.uint64)
        total = sum(map(Fraction, weights))
        self._shares = [float(Fraction(weight) / total) for weight in weights]
        # Rounding the cumulative sums keeps their total exact.
        sums = accumulate((Fraction(weight) / total for weight in weights), initial=Fraction(0))
        ends = [round(share * PERIOD * _UNITS) for share in sums]
        units = [end - start for start, end in pairwise(ends)]
        self._whole = [unit // _UNITS for unit in units]
        self._part_ends = list(accumulate((unit % _UNITS for unit in units), initial=0))

    def drawn(self, periods: int) -> list[int]:
        """Number of samples drawn from each source in the first `periods`, in O(log periods)."""
        sums = [_floor_sum(periods, _UNITS, _STRIDE, end) for end in self._part_ends]
        parts = zip(self._whole, pairwise(sums), strict=True)
        return [periods * whole + after - before for whole, (before, after) in parts]

    def locate(self, samples: Integers) -> Locations:
        """As `WindowSampler`."""
        period, slot = np.divmod(samples, PERIOD)
        source, draw = np.empty_like(slot), np.empty_like(slot)
        for number in np.unique(period).tolist():
            in_period = period == number
            source[in_period], draw[in_period] = self._assign(number, slot[in_period])
        counts = self._counts[source]
        epoch, position = np.divmod(draw, counts)
        window = shuffled(position, counts, hashed(self._keys[source], epoch))
        return Locations(source, epoch, window)

    def _assign(self, period: int, slots: Integers) -> tuple[Integers, Integers]:
        """Source of each slot of a period, and the number of earlier samples of that source."""
        before = np.array(self.drawn(period))
        counts = np.array(self.drawn(period + 1)) - before
        ends = np.cumsum(counts)
        sizes = np.full_like(slots, PERIOD)
        slot = shuffled(slots, sizes, hashed(self._slot_key, np.full_like(slots, period)))
        source = np.searchsorted(ends, slot, side="right")
        return source, before[source] + slot - (ends - counts)[source]

    def epochs(self, samples: int) -> tuple[float, ...]:
        """As `WindowSampler`."""
        shares = zip(self._shares, self._counts.tolist(), strict=True)
        return tuple(samples * share / count for share, count in shares)


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """The sum of (a i + b) // m over i = 0 ... n - 1, by Euclid's algorithm on a and m."""
    total = 0
    while n:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        n, b = divmod(a * n + b, m)
        m, a = a, m
    return total
