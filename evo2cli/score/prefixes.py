"""Log-likelihoods of the windows of alleles, with a cache of the prefixes that windows share.

A window is cut into a prefix that other windows share and a suffix. The position of the cut, and
the shapes of the launches that compute both (`stripedhyena2.packing`), depend only on the two
windows of the allele. So the score of an allele depends on its windows alone, bit for bit.

Centred windows of a site share the bases before the alleles. Anchored windows of neighbouring sites
share their beginning. Their reference window is computed once, in two parts: up to the shortest
context of such windows, and the rest. An alternate window is cut at one of a few positions before
its allele. The log-likelihood of the bases up to the cut is taken from the reference window, for
both alleles, so that its rounding error cancels in the difference.
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
    """The two windows of an allele, queued; their values are available after `read_all`.

    Attributes:
        reference: The window with the reference allele.
        alternate: The window with the alternate allele.
        cut: The prefix of the alternate window whose log-likelihood is taken from the reference
            window; None if the windows are independent.
    """

    reference: Suffix
    alternate: Suffix
    cut: Prefix | None = None

    @property
    def logprobs(self) -> tuple[float, float]:
        """Log-likelihoods of both windows in nats, summed over all bases but the first."""
        alternate = self.alternate.logprob
        if self.cut is not None:
            alternate += self.reference.logprob_until(self.cut.length) - self.cut.logprob
        return self.reference.logprob, alternate

    @property
    def lasts(self) -> tuple[float, float]:
        """Log-probabilities of the last base of both windows, in nats."""
        return self.reference.last, self.alternate.last


class WindowReader:
    """Queues pairs of windows, and computes them in batches.

    Args:
        model: Model in inference mode.
        width: Number of bases in a window.
        is_anchored: Whether neighbouring sites share windows.
        settings: Arguments of the `Packer`.

    Attributes:
        packer: The packer that computes them.
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
        # Cached, since most alleles are cut at the same positions.
        self._ends = lru_cache(1 << 12)(self._ends_of)
        self._cut = lru_cache(1 << 12)(self._cut_of)

    def read_all(self, queued: Iterable[Queued]) -> Iterator[Queued]:
        """Yield the items of an iterable that queues pairs, each once its pairs are computed.

        Batches keep the device busy and fit its memory; on a CPU, a batch is usually one item.
        While a GPU computes a batch, the next one is queued.
        """
        waiting = deque[tuple[list[Queued], Batch]]()
        for batch in self._batches(queued):
            waiting.append(batch)
            if len(waiting) > self.packer.runs_ahead:
                yield from _collected(*waiting.popleft())
        for batch in waiting:
            yield from _collected(*batch)

    def _batches(self, queued: Iterable[Queued]) -> Iterator[tuple[list[Queued], Batch]]:
        items: list[Queued] = []
        for item in queued:
            items.append(item)
            if self.packer.is_full:
                yield items, self.packer.read()
                items = []
        if items:
            yield items, self.packer.read()

    def windows(self, reference: Window, alternate: Window) -> Pair:
        """Queue the windows of an allele for `Pair.logprobs`."""
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
        """Queue the alleles of an SNV, given the same bases before them, for `Pair.lasts`."""
        before = reference.before
        prefix = self._prefix(before, self._cut(len(before), 1))
        seen = before[prefix.length :]
        one, other = (
            self.packer.suffix(prefix, seen + window.allele) for window in (reference, alternate)
        )
        return Pair(one, other)

    def _whole(self, window: Window) -> Suffix:
        """Queue a window by itself; an anchored one is cut before all alleles that share it."""
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
        """Queue the first `cut` of the bases before an allele."""
        return self.packer.prefix(letters, self._ends(len(letters), cut))

    def _ends_of(self, before: int, cut: int) -> tuple[int, ...]:
        """The ends of the pieces in which a prefix is computed."""
        shapes, first = self.packer.shapes, min(self._first(before), cut)
        ends = shapes.whole(first) if shapes.is_whole(first) else shapes.pieces(0, first)
        return (*ends, *shapes.pieces(first, cut))

    def _cut_of(self, before: int, rest: int) -> int:
        return self.packer.shapes.cut(self._first(before), before, rest)

    def _first(self, before: int) -> int:
        """The length of the prefix that all windows of neighbours, or of a site, share.

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


def _collected(items: list[Queued], batch: Batch) -> list[Queued]:
    batch.collect()
    return items


def _with_base(window: Window) -> Window:
    """A window whose allele begins a base earlier, since a suffix needs at least one base."""
    return Window(window.before[:-1], window.before[-1:] + window.allele, window.after)
