"""The windows of each training step, as a function of the seed and the step alone.

Every epoch of a source has its own order and, where windows run across documents, starts at its own
offset (its phase). A run can resume at any step without reading the steps before it, and the order
does not depend on how many ranks share a step.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from evo2cli.data.cuts import Cut, DocumentCut, Packing, StreamCut
from evo2cli.data.documents import PAD, Bytes, Documents
from evo2cli.data.order import Mixture, OnePool, Order, hashed, keyed_number
from evo2cli.data.repeats import MIN_LENGTH, Repeats
from evo2cli.data.tags import Flags, find_tags
from evo2cli.errors import counted

# Number of bytes before and after a window in which the rest of its first and last piece of text is
# searched for. The longest published tag has about 200; of a longer one only these are seen.
TAG_REACH = 4096
_UPPER = np.frombuffer(bytes(range(256)).upper(), np.uint8)


@dataclass(frozen=True)
class Windows:
    """W windows of `length` predictions each, as stored.

    Attributes:
        tokens: Bytes, case kept; a window that reaches the end of its document early is padded with
            PAD, [W, length + 1].
        reverse: Whether a window is read as its reverse complement, [W].
        masked: Bytes that are not learned as targets because they belong to a tag, in the order of
            `tokens` (before reverse complementing), [W, length + 1].
    """

    tokens: Bytes
    reverse: Flags
    masked: Flags

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Windows":
        return Windows(self.tokens[rows], self.reverse[rows], self.masked[rows])

    def share(self, rank: int, world: int) -> "Windows":
        """Every `world`-th window from the `rank`-th; over all ranks, each window once."""
        return self[rank::world]


class WindowLoader:
    """The training windows of every step of a run.

    Args:
        documents: The sources.
        weights: How often each source is read, relative to the others. None reads every window of
            every source once per epoch.
        length: Predictions per window; a window has one byte more.
        sequences: Windows per step, on all ranks together.
        seed: Selects phases, order and strands.
        packing: Whether windows run across documents.
        reverse_complement: Whether each window is reverse complemented with probability 1/2.
        mask_tags: Whether bytes of tags are excluded as targets.
        repeats: Probability that a window gets a copy of an earlier piece of itself, see `Repeats`.
        inverted_repeats: Share of the copies that are reverse complements of their piece.

    Raises:
        ValueError: A source has no window, there are not as many weights as sources, or a window
            is too short for a repeat.
    """

    def __init__(
        self,
        documents: Sequence[Documents],
        weights: Sequence[float] | None = None,
        *,
        length: int,
        sequences: int,
        seed: int,
        packing: Packing = "stream",
        reverse_complement: bool = True,
        mask_tags: bool = True,
        repeats: float = 0.0,
        inverted_repeats: float = 0.0,
    ) -> None:
        if weights is not None and len(documents) != len(weights):
            raise ValueError(
                f"{counted(len(documents), 'source')}, but {counted(len(weights), 'weight')}"
            )
        self._documents = list(documents)
        self._length, self._sequences, self._seed = length, sequences, seed
        self._reverse_complement, self._mask_tags = reverse_complement, mask_tags
        self._repeats = Repeats(repeats, inverted_repeats, seed) if repeats else None
        if repeats and length < MIN_LENGTH:
            raise ValueError(f"a window of {length} is too short for repeats; {MIN_LENGTH} is not")
        self._cuts = [_cut(source, packing, length, shifted=True) for source in documents]
        counts = [cut.count for cut in self._cuts]
        if not all(counts):
            empty = documents[counts.index(0)]
            raise ValueError(
                f"{empty.name}: its {empty.num_tokens:,} tokens are fewer than a window of "
                f'{length:,} + 1; use a shorter window, or packing = "document"'
            )
        self._order: Order
        if weights is None:
            self._order = OnePool(counts, seed)
        else:
            self._order = Mixture(counts, weights, seed)

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows in one pass over all sources."""
        return sum(cut.count for cut in self._cuts)

    def epochs(self, steps: int) -> tuple[float, ...]:
        """Number of passes over each source in `steps` steps."""
        return self._order.epochs(steps * self._sequences)

    def windows(self, step: int, rows: slice = slice(None)) -> Windows:
        """The windows of a step, or some of them.

        Args:
            step: 0-based; steps can be read in any order.
            rows: Which of the step's `sequences` windows, e.g. those of one rank.

        Raises:
            UserError: A source is damaged.
        """
        samples = step * self._sequences + np.arange(self._sequences, dtype=np.int64)[rows]
        found = self._order.locate(samples)
        locations = zip(
            found.source.tolist(), found.epoch.tolist(), found.window.tolist(), strict=True
        )
        windows = _read(
            ((self._documents[source], *self._span(source, *rest)) for source, *rest in locations),
            len(samples),
            length=self._length,
            mask_tags=self._mask_tags,
        )
        if self._repeats is not None:
            self._repeats.put(windows.tokens, windows.masked, samples)
        if self._reverse_complement:
            coins = hashed(np.uint64(keyed_number(self._seed, "strand")), samples)
            windows.reverse[coins % 2 == 0] = False
        else:
            windows.reverse[:] = False
        return windows

    def _span(self, source: int, epoch: int, window: int) -> tuple[int, int]:
        """First byte and size of a window of a source."""
        cut = self._cuts[source]
        phase = keyed_number(self._seed, "phase", source, epoch) % cut.num_phases
        return cut.span(window, phase)


def fixed_windows(
    documents: Documents,
    *,
    length: int,
    limit: int,
    packing: Packing = "stream",
    mask_tags: bool = True,
) -> Windows:
    """Up to `limit` windows spread evenly over a source, always the same, none reversed.

    Args:
        documents: The source; one that is shorter than a window gives no windows.
        length: Predictions per window.
        limit: Maximum number of windows.
        packing: Whether windows run across documents.
        mask_tags: Whether bytes of tags are excluded as targets.
    """
    cut = _cut(documents, packing, length, shifted=False)
    chosen = np.linspace(0, cut.count - 1, min(limit, cut.count)).round().astype(np.int64)
    spans = ((documents, *cut.span(window, 0)) for window in chosen.tolist())
    windows = _read(spans, len(chosen), length=length, mask_tags=mask_tags)
    windows.reverse[:] = False
    return windows


def _cut(documents: Documents, packing: Packing, length: int, *, shifted: bool) -> Cut:
    if packing == "document":
        return DocumentCut(documents, length)
    return StreamCut(documents, length, shifted=shifted)


def _read(
    spans: Iterable[tuple[Documents, int, int]], count: int, *, length: int, mask_tags: bool
) -> Windows:
    """Read windows by source, first byte and size.

    Returns:
        Windows whose `reverse` is true where a window may be reverse complemented: everywhere but
        in windows with a phylogenetic tag, which has no reverse complement.
    """
    tokens = np.full((count, length + 1), PAD, np.uint8)
    masked = np.zeros((count, length + 1), np.bool_)
    reversible = np.ones(count, np.bool_)
    for row, (documents, start, size) in enumerate(spans):
        before = min(start, TAG_REACH)
        after = min(documents.num_tokens - start - size, TAG_REACH)
        text = documents.read(start - before, before + size + after)
        tokens[row, :size] = text[before : before + size]
        found = find_tags(text)
        if found is None:
            continue
        tags, masks = (flags[before : before + size] for flags in found)
        reversible[row] = not tags.any()
        if mask_tags:
            masked[row, :size] = masks
        else:  # lower case in a tag does not mean soft-masked
            tokens[row, :size][tags] = _UPPER[tokens[row, :size][tags]]
    return Windows(tokens, reversible, masked)
