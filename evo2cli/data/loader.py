"""Which windows of which sources make up step k: a function of the seed and k alone.

Each epoch of a source begins at a fresh phase (where windows run across documents) and has an order
of its own. A run goes on at any step without the ones before it, and its order is the same however
many ranks share a step.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evo2cli.data.cuts import Cut, DocumentCut, StreamCut
from evo2cli.data.documents import PAD, Bytes, Documents
from evo2cli.data.order import Mixture, OnePool, Order, hashed, keyed_number
from evo2cli.data.tags import find_tags
from evo2cli.training.recipe import Data

Flags = npt.NDArray[np.bool_]

# Bytes before and after a window in which the rest of its first and last piece of text is looked
# for. The longest published tag has some 200; one that goes on for longer is judged by these.
TAG_REACH = 4096
_UPPER = np.frombuffer(bytes(range(256)).upper(), np.uint8)


@dataclass(frozen=True)
class Windows:
    """Windows of `length` predictions each, as stored; W windows.

    Attributes:
        tokens: Bytes, case kept; a window of less than a whole document's rest ends in PAD,
            [W, length + 1].
        reverse: Whether to read a window as its reverse complement, [W].
        masked: Bytes not to be learned as targets because they belong to a tag, [W, length + 1];
            in the order of `tokens`, not yet turned.
    """

    tokens: Bytes
    reverse: Flags
    masked: Flags

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Windows":
        return Windows(self.tokens[rows], self.reverse[rows], self.masked[rows])

    def share(self, rank: int, world: int) -> "Windows":
        """Every `world`-th window from the `rank`-th on: all ranks together have each one once."""
        return self[rank::world]


class WindowLoader:
    """The training windows of every step of a run.

    Args:
        documents: The sources of `data`, opened, in their order.
        data: Weights, packing, strands and tags, as the recipe says.
        length: Predictions a window; a window holds one byte more.
        sequences: Windows a step, on all ranks together.
        seed: Decides phases, order and strands.

    Raises:
        ValueError: A source holds no window, or there are not as many documents as sources.
    """

    def __init__(
        self, documents: Sequence[Documents], data: Data, *, length: int, sequences: int, seed: int
    ) -> None:
        if len(documents) != len(data.sources):
            raise ValueError(f"{len(documents)} opened sources, but {len(data.sources)} in data")
        self._documents, self._data = list(documents), data
        self._length, self._sequences, self._seed = length, sequences, seed
        self._cuts = [_cut(source, data, length, shifted=True) for source in documents]
        counts = [cut.count for cut in self._cuts]
        if not all(counts):
            empty = documents[counts.index(0)]
            raise ValueError(
                f"{empty.name}: {empty.num_tokens:,} tokens hold no window of {length:,} + 1; "
                'use a shorter one, or packing = "document"'
            )
        weights = [source.weight for source in data.sources if source.weight is not None]
        self._order: Order = Mixture(counts, weights, seed) if weights else OnePool(counts, seed)

    @property
    def windows_per_epoch(self) -> int:
        """How many windows one pass over all sources has."""
        return sum(cut.count for cut in self._cuts)

    def epochs(self, steps: int) -> tuple[float, ...]:
        """How often `steps` steps go through each source, in the order of the sources."""
        return self._order.epochs(steps * self._sequences)

    def windows(self, step: int, rows: slice = slice(None)) -> Windows:
        """The windows of a step (0-based), or only some rows of them.

        Args:
            step: Any; no other step need have been read.
            rows: Of the step's `sequences` windows, e.g. those of one rank or one forward pass.

        Raises:
            UserError: A source proves damaged.
        """
        samples = step * self._sequences + np.arange(self._sequences, dtype=np.int64)[rows]
        places = self._order.places(samples)
        spans = zip(
            places.source.tolist(), places.epoch.tolist(), places.window.tolist(), strict=True
        )
        found = _read(
            ((self._documents[source], *self._span(source, *rest)) for source, *rest in spans),
            len(samples),
            length=self._length,
            mask_tags=self._data.mask_tags,
        )
        if self._data.reverse_complement:
            coins = hashed(np.uint64(keyed_number(self._seed, "strand")), samples)
            found.reverse[coins % 2 == 0] = False
        else:
            found.reverse[:] = False
        return found

    def _span(self, source: int, epoch: int, window: int) -> tuple[int, int]:
        """First byte and size of a window of a source."""
        cut = self._cuts[source]
        phase = keyed_number(self._seed, "phase", source, epoch) % cut.num_phases
        return cut.span(window, phase)


def fixed_windows(documents: Documents, data: Data, *, length: int, limit: int) -> Windows:
    """Up to `limit` windows spread evenly over a source, the same every time, none reversed.

    Args:
        documents: Held out.
        data: Its packing and what it says of tags; the rest does not matter.
        length: Predictions a window.
        limit: Windows at most.

    Returns:
        No windows when the source holds none.
    """
    cut = _cut(documents, data, length, shifted=False)
    chosen = np.linspace(0, cut.count - 1, min(limit, cut.count)).round().astype(np.int64)
    spans = ((documents, *cut.span(window, 0)) for window in chosen.tolist())
    found = _read(spans, len(chosen), length=length, mask_tags=data.mask_tags)
    found.reverse[:] = False
    return found


def _cut(documents: Documents, data: Data, length: int, *, shifted: bool) -> Cut:
    if data.packing == "document":
        return DocumentCut(documents, length)
    return StreamCut(documents, length, shifted=shifted)


def _read(
    spans: Iterable[tuple[Documents, int, int]], count: int, *, length: int, mask_tags: bool
) -> Windows:
    """Read windows by source, first byte and size.

    Returns:
        `reverse` says which may be turned: all but those with a phylogenetic tag, which reads in
        one direction only.
    """
    tokens = np.full((count, length + 1), PAD, np.uint8)
    masked = np.zeros((count, length + 1), np.bool_)
    may_turn = np.ones(count, np.bool_)
    for row, (documents, start, size) in enumerate(spans):
        before = min(start, TAG_REACH)
        after = min(documents.num_tokens - start - size, TAG_REACH)
        text = documents.read(start - before, before + size + after)
        tokens[row, :size] = text[before : before + size]
        found = find_tags(text)
        if found is None:
            continue
        tags, masks = (flags[before : before + size] for flags in found)
        may_turn[row] = not tags.any()
        if mask_tags:
            masked[row, :size] = masks
        else:  # a lower-case letter of a tag is no soft-masked base
            tokens[row, :size][tags] = _UPPER[tokens[row, :size][tags]]
    return Windows(tokens, may_turn, masked)
