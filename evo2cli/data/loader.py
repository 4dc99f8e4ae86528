"""The data loader: the windows of a training step, as a function of the seed and the step alone.

Every epoch of a source is shuffled anew and, where windows run across documents, starts at another
offset (its phase). A run can resume at any step without reading the earlier ones, and the order of
the samples does not depend on the number of ranks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from evo2cli.data.documents import PAD, Bytes, Documents
from evo2cli.data.packing import DocumentPacking, Packing, StreamPacking, WindowPacking
from evo2cli.data.repeats import MIN_LENGTH, Repeats
from evo2cli.data.sampler import MixtureSampler, PooledSampler, WindowSampler, hashed, keyed_number
from evo2cli.data.tags import Flags, find_tags
from evo2cli.errors import counted

# Bytes read before and after a window to find tags that its borders cut. The longest published tag
# has about 200 bytes; of a longer one only this many are seen.
TAG_REACH = 4096
_UPPER = np.frombuffer(bytes(range(256)).upper(), np.uint8)


@dataclass(frozen=True)
class Windows:
    """W windows of `length` predictions each, as stored.

    Attributes:
        tokens: Bytes, case kept; a window shorter than `length` + 1 is padded at its end with PAD,
            [W, length + 1].
        reverse: Whether to reverse complement a window, [W].
        masked: Bytes excluded from the loss as targets because they belong to a tag, in the order
            of `tokens` (before reverse complementing), [W, length + 1].
    """

    tokens: Bytes
    reverse: Flags
    masked: Flags

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Windows":
        return Windows(self.tokens[rows], self.reverse[rows], self.masked[rows])

    def shard(self, rank: int, world: int) -> "Windows":
        """The windows of one rank: every `world`-th, starting with number `rank`."""
        return self[rank::world]


class WindowLoader:
    """Loads the training windows of any step of a run.

    Args:
        documents: The sources.
        weights: Sampling weight of each source, relative to the others. None reads every window of
            every source once per epoch.
        length: Predictions per window; a window has one byte more.
        sequences: Global batch size: windows per step, over all ranks.
        seed: Determines phases, order and strands.
        packing: Whether windows run across documents.
        reverse_complement: Whether each window is reverse complemented with probability 1/2.
        mask_tags: Whether tags are excluded from the loss.
        repeats: Inserted into the windows.

    Raises:
        ValueError: A source is shorter than a window, the number of weights is not that of the
            sources, or a window is too short for a repeat.
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
        repeats: Repeats | None = None,
    ) -> None:
        if weights is not None and len(documents) != len(weights):
            raise ValueError(
                f"{counted(len(documents), 'source')}, but {counted(len(weights), 'weight')}"
            )
        self._documents = list(documents)
        self._length, self._sequences, self._seed = length, sequences, seed
        self._reverse_complement, self._mask_tags = reverse_complement, mask_tags
        self._repeats = repeats
        if repeats is not None and length < MIN_LENGTH:
            raise ValueError(
                f"a window of {length} is too short for repeats; use at least {MIN_LENGTH}"
            )
        self._packings = [_pack(source, packing, length, shifted=True) for source in documents]
        counts = [packed.num_windows for packed in self._packings]
        if not all(counts):
            empty = documents[counts.index(0)]
            raise ValueError(
                f"{empty.name}: its {empty.num_tokens:,} tokens are fewer than a window of "
                f'{length:,} + 1; use a shorter window, or packing = "document"'
            )
        self._sampler: WindowSampler
        if weights is None:
            self._sampler = PooledSampler(counts, seed)
        else:
            self._sampler = MixtureSampler(counts, weights, seed)

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows in one pass over all sources."""
        return sum(packed.num_windows for packed in self._packings)

    def epochs(self, steps: int) -> tuple[float, ...]:
        """Number of passes over each source in `steps` steps."""
        return self._sampler.epochs(steps * self._sequences)

    def windows(self, step: int, rows: slice = slice(None)) -> Windows:
        """The windows of a step, or the rows of them that one rank needs.

        Args:
            step: 0-based; steps can be loaded in any order.
            rows: Which of the step's `sequences` windows to load.

        Raises:
            UserError: A source is damaged.
        """
        samples = step * self._sequences + np.arange(self._sequences, dtype=np.int64)[rows]
        located = self._sampler.locate(samples)
        locations = zip(
            located.source.tolist(), located.epoch.tolist(), located.window.tolist(), strict=True
        )
        windows = _read(
            ((self._documents[source], *self._span(source, *rest)) for source, *rest in locations),
            len(samples),
            length=self._length,
            mask_tags=self._mask_tags,
        )
        if self._repeats is not None:
            self._repeats.insert(windows.tokens, windows.masked, samples)
        if self._reverse_complement:
            coins = hashed(np.uint64(keyed_number(self._seed, "strand")), samples)
            windows.reverse[coins % 2 == 0] = False
        else:
            windows.reverse[:] = False
        return windows

    def _span(self, source: int, epoch: int, window: int) -> tuple[int, int]:
        """First byte and size of a window of a source."""
        packed = self._packings[source]
        phase = keyed_number(self._seed, "phase", source, epoch) % packed.num_phases
        return packed.span(window, phase)


def fixed_windows(
    documents: Documents,
    *,
    length: int,
    limit: int,
    packing: Packing = "stream",
    mask_tags: bool = True,
) -> Windows:
    """A fixed validation set: up to `limit` windows spread evenly over a source, forward strand.

    Args:
        documents: The source; one that is shorter than a window gives no windows.
        length: Predictions per window.
        limit: Maximum number of windows.
        packing: Whether windows run across documents.
        mask_tags: Whether tags are excluded from the loss.
    """
    packed = _pack(documents, packing, length, shifted=False)
    count = packed.num_windows
    chosen = np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64)
    spans = ((documents, *packed.span(window, 0)) for window in chosen.tolist())
    windows = _read(spans, len(chosen), length=length, mask_tags=mask_tags)
    windows.reverse[:] = False
    return windows


def _pack(documents: Documents, packing: Packing, length: int, *, shifted: bool) -> WindowPacking:
    if packing == "document":
        return DocumentPacking(documents, length)
    return StreamPacking(documents, length, shifted=shifted)


def _read(
    spans: Iterable[tuple[Documents, int, int]], count: int, *, length: int, mask_tags: bool
) -> Windows:
    """Read windows, given the source, first byte and size of each.

    Returns:
        Windows whose `reverse` is true where reverse complementing is allowed: everywhere except in
        windows with a phylogenetic tag, which has no reverse complement.
    """
    tokens = np.full((count, length + 1), PAD, np.uint8)
    masked = np.zeros((count, length + 1), np.bool_)
    reversible = np.ones(count, np.bool_)
    for row, (documents, start, size) in enumerate(spans):
        before = min(start, TAG_REACH)
        after = min(documents.num_tokens - start - size, TAG_REACH)
        text = documents.read(start - before, before + size + after)
        tokens[row, :size] = text[before : before + size]
        tag_masks = find_tags(text)
        if tag_masks is None:
            continue
        tags, masks = (mask[before : before + size] for mask in tag_masks)
        reversible[row] = not tags.any()
        if mask_tags:
            masked[row, :size] = masks
        else:  # lower case in a tag does not mean soft-masked
            tokens[row, :size][tags] = _UPPER[tokens[row, :size][tags]]
    return Windows(tokens, reversible, masked)
