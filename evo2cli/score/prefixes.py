"""Log-likelihoods of the windows of alleles; what windows share is read once.

The score of an allele depends on its windows alone, bit for bit: where a window is cut into the
prefix that it shares and its own suffix depends on the two windows alone, and so does the shape of
the launch that reads a part (`stripedhyena2.packing`).

Centred windows of a site share the bases before the alleles. Anchored windows of neighbouring sites
share their beginning: the reference window is read once, from the least context of such windows on,
and an allele starts at one of few cuts before it. There the log-likelihood of the bases up to the
cut is that of the reference window, for both alleles, so its rounding leaves no trace in the
difference.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from evo2cli.genome.windows import Window
from stripedhyena2 import StripedHyena2
from stripedhyena2.packing import GRANULARITY, Batch, Packer, Prefix, Suffix

Queued = TypeVar("Queued")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two queued windows; they have numbers as soon as they are read.

    Attributes:
        reference: The window with the reference allele.
        alternate: The window with an alternate allele.
        cut: What the alternate window begins with, if that has the log-likelihood that it has in
            the reference window; None: the alternate window stands alone.
    """

    reference: Suffix
    alternate: Suffix
    cut: Prefix | None = None

    @property
    def logprobs(self) -> tuple[float, float]:
        """Log-likelihoods of both windows, in nats: the sums over all bases but the first."""
        alternate = self.alternate.logprob
        if self.cut is not None:
            alternate += self.reference.logprob_until(self.cut.length) - self.cut.logprob
        return self.reference.logprob, alternate

    @property
    def lasts(self) -> tuple[float, float]:
        """Log-probabilities of the last base of both, in nats."""
        return self.reference.last, self.alternate.last


class WindowReader:
    """Queues pairs of windows, and reads them in batches.

    Args:
        model: Model in inference mode.
        width: Number of bases in a window.
        is_anchored: Whether neighbouring sites share windows.
        settings: Arguments of the `Packer`.

    Attributes:
        packer: The packer that reads them.
    """

    def __init__(
        self,
        model: StripedHyena2,
        width: int,
        *,
        is_anchored: bool,
        **settings: Any,
    ) -> None:
        self.packer = Packer(model, **settings)
        self._width, self._is_anchored = width, is_anchored
        # Most alleles are cut at the same positions.
        self._ends = lru_cache(1 << 12)(self._ends_of)
        self._cut = lru_cache(1 << 12)(self._cut_of)

    def read_all(self, queued: Iterable[Queued]) -> Iterator[Queued]:
        """The items of an iterable that queues pairs, each once its pairs have been read.

        They are read in batches that keep the device busy and fit its memory, on a CPU usually
        those of one item; while a GPU reads a batch, the next one is queued.
        """
        waiting = deque[tuple[list[Queued], Batch]]()
        for batch in self._batches(queued):
            waiting.append(batch)
            if len(waiting) > self.packer.runs_ahead:
                yield from _collected(*waiting.popleft())
        for batch in waiting:
            yield from _collected(*batch)

    def _batches(self, queued: Iterable[Queued]) -> Iterator[tuple[list[Queued], Batch]]:
        taken: list[Queued] = []
        for one in queued:
            taken.append(one)
            if self.packer.is_full:
                yield taken, self.packer.read()
                taken = []
        if taken:
            yield taken, self.packer.read()

    def windows(self, reference: Window, alternate: Window) -> Pair:
        """Ask for the log-likelihoods of the windows of an allele."""
        if not (reference.allele + reference.after and alternate.allele + alternate.after):
            reference, alternate = map(_with_base, (reference, alternate))
        before, rest = alternate.before, len(alternate.allele) + len(alternate.after)
        if self._is_anchored:
            whole = self._whole(reference)
            first, cut = self._first(len(reference.before)), self._cut(len(before), rest)
            if cut < first or not reference.before.startswith(before[:cut]):
                return Pair(whole, self._whole(alternate))
            prefix = self._prefix(before, cut)
            return Pair(whole, self._rest(prefix, alternate), prefix)
        if reference.before != before:
            return Pair(self._whole(reference), self._whole(alternate))
        longest = max(rest, len(reference.allele) + len(reference.after))
        prefix = self._prefix(before, self._cut(len(before), longest))
        return Pair(self._rest(prefix, reference), self._rest(prefix, alternate))

    def next_base(self, reference: Window, alternate: Window) -> Pair:
        """Ask for the log-probabilities of alleles of one base, given the same bases before."""
        before = reference.before
        prefix = self._prefix(before, self._cut(len(before), 1))
        seen = before[prefix.length :]
        one, other = (
            self.packer.suffix(prefix, seen + window.allele) for window in (reference, alternate)
        )
        return Pair(one, other)

    def _whole(self, window: Window) -> Suffix:
        """A window by itself; an anchored one is cut where the alleles of no site are."""
        before = len(window.before)
        if self._is_anchored:
            cut = self._first(before)
        else:
            cut = self._cut(before, len(window.allele) + len(window.after))
        return self._rest(self._prefix(window.before, cut), window, cumulative=self._is_anchored)

    def _rest(self, prefix: Prefix, window: Window, *, cumulative: bool = False) -> Suffix:
        rest = window.before[prefix.length :] + window.allele + window.after
        return self.packer.suffix(prefix, rest, cumulative=cumulative)

    def _prefix(self, letters: bytes, cut: int) -> Prefix:
        """The first `cut` of the bases before an allele."""
        return self.packer.prefix(letters, self._ends(len(letters), cut))

    def _ends_of(self, before: int, cut: int) -> tuple[int, ...]:
        """The ends of the pieces in which a prefix is read."""
        shapes, first = self.packer.shapes, min(self._first(before), cut)
        ends = shapes.whole(first) if shapes.is_whole(first) else shapes.pieces(0, first)
        return (*ends, *shapes.pieces(first, cut))

    def _cut_of(self, before: int, rest: int) -> int:
        return self.packer.shapes.cut(self._first(before), before, rest)

    def _first(self, before: int) -> int:
        """The length of what the windows of neighbours or of a site share in any case.

        Args:
            before: Bases before the allele.
        """
        shapes = self.packer.shapes
        if not self._is_anchored:
            return before if shapes.is_whole(before) else 0
        least = self._width // 2
        if before < least:  # at the beginning of a contig
            least = before and 1 << before.bit_length() - 1
        return least if shapes.is_whole(least) else least // GRANULARITY * GRANULARITY


def _collected(queued: list[Queued], batch: Batch) -> list[Queued]:
    batch.collect()
    return queued


def _with_base(window: Window) -> Window:
    """A window whose allele begins a base earlier: a suffix has a base."""
    return Window(window.before[:-1], window.before[-1:] + window.allele, window.after)
