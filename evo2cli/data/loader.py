"""Which windows of which tokens make up step k: a function of the seed and k alone.

Documents stand back to back, as on disk. Each epoch cuts every token set into windows of `length`
predictions from a fresh random phase, and visits the windows of all sets in one random order. A run
can therefore go on at any step without replaying the ones before it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class WindowLoader:
    """Batches of windows from several token arrays.

    Args:
        arrays: uint8 tokens, usually memory-mapped.
        length: Predictions a window; a window holds one byte more.
        batch: Windows a step.
        seed: Decides phases, order and strands.
        reverse_complement: Mark half of the windows to be read from the other strand.

    Raises:
        ValueError: No array holds a whole window.
    """

    def __init__(
        self,
        arrays: Sequence[Bytes],
        *,
        length: int,
        batch: int,
        seed: int,
        reverse_complement: bool,
    ) -> None:
        self.arrays = [array for array in arrays if len(array) > length]
        if not self.arrays:
            total = sum(map(len, arrays))
            raise ValueError(
                f"{total:,} tokens hold no window of {length:,} + 1; use a shorter one"
            )
        self.length, self.batch, self.seed = length, batch, seed
        self.reverse_complement = reverse_complement
        # One window fewer than would fit, so that every phase fits, but never none.
        self.counts = np.array([max(1, len(a) // length - 1) for a in self.arrays])
        self._epoch: int | None = None

    @property
    def windows_per_epoch(self) -> int:
        """How many windows one pass over the data has."""
        return int(self.counts.sum())

    def step(self, step: int) -> tuple[Bytes, npt.NDArray[np.bool_]]:
        """The windows of a step, [batch, length + 1], and which to read reversed, [batch]."""
        windows = np.empty((self.batch, self.length + 1), np.uint8)
        reverse = np.empty(self.batch, np.bool_)
        for row, sample in enumerate(range(step * self.batch, (step + 1) * self.batch)):
            epoch, place = divmod(sample, self.windows_per_epoch)
            self._prepare(epoch)
            window = self._order[place]
            source = int(np.searchsorted(self._ends, window, side="right"))
            within = window - (self._ends[source] - self.counts[source])
            start = int(self._phases[source] + within * self.length)
            windows[row] = self.arrays[source][start : start + self.length + 1]
            reverse[row] = self._reverse[place]
        return windows, reverse

    def _prepare(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        total = self.windows_per_epoch
        self._ends = np.cumsum(self.counts)
        spare = [
            len(array) - count * self.length
            for array, count in zip(self.arrays, self.counts, strict=True)
        ]
        self._phases = random.integers(0, np.minimum(spare, self.length))
        self._order = random.permutation(total)
        self._reverse = (random.random(total) < 0.5) & self.reverse_complement
        self._epoch = epoch


def fixed_windows(arrays: Sequence[Bytes], *, length: int, limit: int) -> Bytes:
    """Up to `limit` windows spread evenly over the arrays, the same every time.

    Returns:
        [windows, length + 1]; none when no array holds a whole window.
    """
    starts = [
        (source, start)
        for source, array in enumerate(arrays)
        for start in range(0, len(array) - length, length)
    ]
    chosen = np.linspace(0, len(starts) - 1, min(limit, len(starts))).round().astype(int)
    windows = [
        arrays[source][start : start + length + 1]
        for source, start in (starts[place] for place in chosen)
    ]
    return np.stack(windows) if windows else np.empty((0, length + 1), np.uint8)
