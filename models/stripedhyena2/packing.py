"""Log-likelihoods of many sequences in batches, with prefix caching.

A sequence is cut into a prefix, whose states, keys and values are cached for other sequences, and a
suffix, which ends it. Prefixes form a tree, as in a radix cache: each node is a piece that several
others may continue. A launch is one forward pass over a batch, whose rows are suffixes, each after
its own prefix, or pieces of prefixes. Launches have a few shapes (buckets): suffixes are padded on
the right, and empty rows fill a launch. Neither changes a result, since no base sees what follows
it and rows do not see each other.

The shape depends on the length of the row alone, and a row has the same bits wherever it stands in
a launch of a shape: kernels compute each row by itself, and the matrix products of a GPU sum every
row in the same order. So a log-likelihood does not depend on what else is read. Products on a CPU
do not all have that property (by MKL in fp64, a row of 17 tokens among five has other bits in other
positions), and a short row keeps a CPU busy: there every launch is one sequence without padding.

B sequences of a launch, L tokens of a row, V vocabulary.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stripedhyena2.cache import Launch, Pooled, padded_rows
from stripedhyena2.memory import free_bytes
from stripedhyena2.scoring import CHUNK

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

Floats = npt.NDArray[np.float64]

GRANULARITY = 64  # tokens; the shortest row of a packed launch, and of a piece of a prefix in it
SHORT_ROW = 512  # tokens; a launch of shorter rows has no more of them: each may need a prefix
BUCKETS = 16  # row lengths of suffixes between a power of two and the next
MAX_MULTIPLY_ADDS = 1e16  # of a batch: half a minute of a GPU
MAX_TOKENS = 1 << 22  # of a batch
MAX_MEMORY_SHARE = 0.35  # of a GPU's free memory, for prefixes; a pool is copied when it grows
PAD_TOKEN = ord("A")  # any token with finite activations: 0 * inf would spread
NOT_READ = -1  # in place of a state index
NO_PAGES = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Shapes:
    """The shapes of launches: how long rows are, in buckets, and how many there are.

    Attributes:
        tokens: Tokens of a launch, a power of two; 0 for one sequence at a time, never padded.
    """

    tokens: int

    @classmethod
    def of(cls, model: "StripedHyena2") -> "Shapes":
        """Enough tokens to keep a GPU busy: more for narrow models. They depend on nothing else."""
        if model.embedding.weight.device.type == "cpu":
            return cls(0)
        return cls(min(max(_power_below(2**25 // model.config.width), 4096), 262_144))

    def rows(self, length: int) -> int:
        """Rows of a launch."""
        return max(self.tokens // max(length, SHORT_ROW), 1)

    def padded(self, length: int) -> int:
        """The length of the row of a suffix of this many bases.

        A few more than a power of two have a row of their own: both halves of a window with an
        allele, and small insertions, are that long.
        """
        if 2 * length > self.tokens:  # one row, whatever its length
            return length
        below = _power_below(max(length - 1, GRANULARITY))
        if length <= below + GRANULARITY:
            return below + GRANULARITY if length > below else below
        step = max(below // BUCKETS, GRANULARITY)
        return -(-length // step) * step

    def pieces(self, first: int, end: int) -> Iterator[int]:
        """The ends of the pieces in which a prefix from `first` to `end` is read.

        They are powers of two, the longest first, so that prefixes with a common beginning share
        pieces, and pieces of different prefixes are as long. Packed, `end - first` is a multiple of
        GRANULARITY; else what is left of one is the last piece.
        """
        while end - first > CHUNK:
            yield (first := first + CHUNK)
        while end - first >= GRANULARITY:
            yield (first := first + _power_below(end - first))
        if first < end:
            yield end

    def piece_rows(self, length: int) -> int:
        """Rows of a launch of pieces; one for a piece of any other length than a power of two."""
        return self.rows(length) if length == _power_below(length) else 1

    def is_whole(self, length: int) -> bool:
        """Whether a prefix that nothing else shares is long enough to be read in one piece."""
        return 8 * length >= self.tokens

    def whole(self, length: int) -> Iterator[int]:
        """The ends of the pieces of a prefix that is read in one piece, or in chunks if longer."""
        yield from range(CHUNK, length, CHUNK)
        if length:
            yield length

    def cut(self, first: int, before: int, rest: int) -> int:
        """Where the suffix of a sequence begins, between `first` and its base `before`.

        Args:
            first: Where the pieces of its prefix begin.
            before: Bases that other sequences share.
            rest: Bases that follow them.

        Returns:
            `before` itself one at a time. Packed, a multiple of GRANULARITY behind `first`: of
            those for which the row is as short as it can be, the one with the fewest pieces.
        """
        if not self.tokens:
            return before
        border = first + (before - first) // GRANULARITY * GRANULARITY
        earliest = before + rest - self.padded(before + rest - border)
        if earliest <= first:
            return first
        size = GRANULARITY
        while (rounder := first + (border - first) // (2 * size) * (2 * size)) >= earliest:
            border, size = rounder, 2 * size
        return border


def _power_below(number: int) -> int:
    """The largest power of two up to `number`."""
    return 1 << number.bit_length() - 1


class Prefix:
    """The beginning of sequences: a node in the tree of prefixes, with a piece of the bases.

    Attributes:
        parent: The node that it continues; None for the root, the empty prefix.
        bases: The bases of this piece.
        length: Number of bases from the root to the end of this piece.
        logprob: Log-likelihood of all of them, in nats; once they are read.
    """

    __slots__ = (
        "bases",
        "batch",
        "children",
        "length",
        "logprob",
        "logprobs",
        "pages",
        "parent",
        "state_index",
        "suffixes",
    )

    def __init__(self, parent: "Prefix | None", bases: bytes) -> None:
        self.parent, self.bases = parent, bases
        self.length: int = len(bases) + (parent.length if parent else 0)
        self.logprob = 0.0
        self.logprobs: Floats | None = None  # up to each base of this piece; only of chunks
        self.state_index = NOT_READ
        self.pages = NO_PAGES  # of the tokens of this piece
        self.batch = 0  # the last one that uses it
        self.children: dict[bytes, Prefix] = {}
        self.suffixes: dict[bytes, Suffix] = {}

    def write_page_table(self, page_table_T: npt.NDArray[np.int32]) -> None:
        """Write the pages of all its tokens to the beginning of a row of the page table."""
        piece: Prefix = self
        while piece.parent is not None:
            page_table_T[piece.parent.length : piece.length] = piece.pages
            piece = piece.parent


class Suffix:
    """The end of a sequence, a leaf in the tree of prefixes, and with it the whole sequence.

    Attributes:
        parent: The prefix that it continues.
        bases: Its bases, at least one; those of long ones are mostly in further prefixes.
        logprob: Log-likelihood of the whole sequence, in nats; once it is read.
        last: Log-probability of the last base, given all before, in nats; likewise.
    """

    __slots__ = ("bases", "batch", "cumulative", "last", "logprob", "logprobs", "parent")

    def __init__(self, parent: Prefix, bases: bytes, *, cumulative: bool) -> None:
        self.parent, self.bases, self.cumulative = parent, bases, cumulative
        self.batch = 0  # the last one that uses it
        self.logprob = self.last = float("nan")
        self.logprobs: Floats | None = None  # up to each of its bases; if `cumulative`

    def logprob_until(self, length: int) -> float:
        """Log-likelihood of the first `length` bases of the sequence, in nats.

        The sequence was queued with `cumulative`, and its own prefix is not longer.
        """
        parent, logprobs = self.parent, self.logprobs
        while length < parent.length:
            assert parent.parent is not None
            parent, logprobs = parent.parent, parent.logprobs
        if length == parent.length:
            return parent.logprob
        assert logprobs is not None, "queued with `cumulative`"
        return parent.logprob + float(logprobs[length - parent.length - 1])


class Packer:
    """Computes log-likelihoods of sequences in batches, with a cache of prefixes.

    Sequences are queued first (`prefix`, `suffix`). Then `read` runs all of them through the model,
    and `collect` gives them their log-likelihoods. Prefixes that the next batch uses again stay in
    the cache.

    Args:
        model: Model in inference mode.
        shapes: The launches; None for those of its device.
        brief: Keep batches as short as a launch or two, because other work waits for the model.
        counts_only: Compute nothing; all log-likelihoods are 0.

    Attributes:
        shapes: The launches.
        root: The empty prefix.
        num_bases: Number of bases that ran through the model, without padding.
    """

    def __init__(
        self,
        model: "StripedHyena2",
        shapes: Shapes | None = None,
        *,
        brief: bool = False,
        counts_only: bool = False,
    ) -> None:
        self.shapes = shapes or Shapes.of(model)
        self.root = Prefix(None, b"")
        self.root.state_index = 0
        self.num_bases = 0
        self._model, self._counts_only, self._brief = model, counts_only, brief
        self._device = model.embedding.weight.device
        self._pools = [mixer.new_pool() for mixer in model.mixers]
        self._is_paged = any(pool.is_paged for pool in self._pools)
        self._next_SV: Tensor | None = None  # log-probabilities after each prefix, by state index
        self._num_states = self._num_pages = 1
        self._free_states: list[int] = []
        self._free_pages = NO_PAGES
        element, config = model.embedding.weight.element_size(), model.config
        fixed, growing = (
            sum(mixer.state_bytes(config, tokens, element) for mixer in config.mixers)
            for tokens in (0, 1)
        )
        self._bytes = fixed, growing - fixed  # of a state, of a page
        multiply_adds = sum(parameter.numel() for parameter in model.parameters())
        max_tokens = min(MAX_MULTIPLY_ADDS / multiply_adds, MAX_TOKENS)
        if brief or not self.shapes.tokens:
            max_tokens = 0
        self._max_tokens = max(max_tokens, self.shapes.tokens, 1)
        self._batch = 0
        self._last: Batch | None = None
        self._begin()

    def _begin(self) -> None:
        """Start an empty batch."""
        self._batch += 1
        self._prefixes: list[Prefix] = []  # to read
        self._suffixes: list[Suffix] = []
        self._tokens = self._used_states = self._used_pages = 0
        self._max_bytes = math.inf
        if self._device.type == "cuda":
            pools = self._size(self._num_states, self._num_pages)
            self._max_bytes = MAX_MEMORY_SHARE * (free_bytes(self._device) + pools)

    def _size(self, num_states: int, num_pages: int) -> int:
        """Bytes of cached prefixes."""
        state, page = self._bytes
        return num_states * state + num_pages * page

    @property
    def is_full(self) -> bool:
        """Whether the queue has reached the maximum size of a batch, in tokens or in memory."""
        used = self._size(self._used_states, self._used_pages)
        return self._tokens >= self._max_tokens or used > self._max_bytes

    def prefix(self, bases: bytes, ends: Iterable[int]) -> Prefix:
        """Queue the beginning of a sequence, unless it is cached.

        Args:
            bases: The sequence, or more than its beginning, in upper-case letters.
            ends: Where its pieces end, in order.
        """
        prefix = self.root
        for end in ends:
            prefix = self._piece(prefix, bases[prefix.length : end])
        return prefix

    def _piece(self, parent: Prefix, bases: bytes) -> Prefix:
        """The child of a node with these bases; queued unless it is cached."""
        prefix = parent.children.get(bases)
        if prefix is None:
            prefix = parent.children[bases] = Prefix(parent, bases)
            self._prefixes.append(prefix)
            self._tokens += len(bases)
        if prefix.batch != self._batch:
            prefix.batch = self._batch
            self._used_states += 1
            self._used_pages += len(bases)
        return prefix

    def suffix(self, parent: Prefix, bases: bytes, *, cumulative: bool = False) -> Suffix:
        """Queue the end of a sequence, and with it the sequence.

        Args:
            parent: Its beginning, queued in the same batch.
            bases: The rest, at least one base, in upper-case letters.
            cumulative: Whether `Suffix.logprob_until` will be called.
        """
        suffix = parent.suffixes.get(bases)
        if suffix and suffix.cumulative >= cumulative:
            suffix.batch = self._batch
            return suffix
        prefix, rest = parent, bases
        while len(rest) > CHUNK:
            prefix, rest = self._piece(prefix, rest[:CHUNK]), rest[CHUNK:]
        suffix = parent.suffixes[bases] = Suffix(prefix, rest, cumulative=cumulative)
        suffix.batch = self._batch
        self._suffixes.append(suffix)
        self._tokens += len(rest) if len(rest) > 1 else 0  # a single base is not read
        return suffix

    @torch.inference_mode()
    def read(self) -> "Batch":
        """Read all that was queued since the last call; `collect` then gives the log-likelihoods.

        A GPU may still be computing when this returns.
        """
        self._evict()
        self.num_bases += self._tokens
        batch = Batch([], [], None, self._last)
        if self._counts_only:
            for prefix in self._prefixes:
                prefix.state_index = 0
            for suffix in self._suffixes:
                suffix.logprob = suffix.last = 0.0
                suffix.logprobs = np.zeros(len(suffix.bases))
        else:
            self._allocate()
            results = [*self._read_prefixes(), *self._read_suffixes()]
            single = [suffix for suffix in self._suffixes if len(suffix.bases) == 1]
            batch = Batch(results, single, self._read_single(single), self._last)
        self._last = batch
        self._begin()
        return batch

    def _evict(self) -> None:
        """Drop the prefixes that this batch does not use."""
        free, waiting = [self._free_pages], [self.root]
        while waiting:
            prefix = waiting.pop()
            gone = [child for child in prefix.children.values() if child.batch != self._batch]
            for child in gone:
                del prefix.children[child.bases]
            while gone:
                child = gone.pop()
                gone += child.children.values()
                child.children.clear()  # so that nothing refers to itself, and memory is free now
                child.suffixes.clear()
                if child.state_index > 0:
                    self._free_states.append(child.state_index)
                    free.append(child.pages)
            stale = [each for each in prefix.suffixes.items() if each[1].batch != self._batch]
            for bases, _ in stale:
                del prefix.suffixes[bases]
            waiting += prefix.children.values()
        if len(free) > 1:
            self._free_pages = np.concatenate(free)

    def _allocate(self) -> None:
        """Make room for the prefixes to read."""
        num_states = self._num_states + max(len(self._prefixes) - len(self._free_states), 0)
        self._free_states += range(self._num_states, num_states)
        num_pages = self._num_pages
        if self._is_paged:
            needed = sum(len(prefix.bases) for prefix in self._prefixes)
            num_pages += max(needed - len(self._free_pages), 0)
            new = np.arange(self._num_pages, num_pages, dtype=np.int32)
            self._free_pages = np.concatenate([self._free_pages, new])
        if (num_states, num_pages) == (self._num_states, self._num_pages):
            return
        self._num_states, self._num_pages = num_states, num_pages
        for pool in self._pools:
            pool.reserve(num_states, num_pages)
        if self._next_SV is not None:
            self._next_SV = padded_rows(self._next_SV, num_states)

    @property
    def runs_ahead(self) -> bool:
        """Whether a GPU may still compute when `read` returns, while more is queued."""
        return self._device.type == "cuda" and not self._brief

    def _read_prefixes(self) -> Iterator["_Result"]:
        """Read pieces whose parents have been read, the longest first."""
        waiting = self._prefixes
        while waiting:
            ready = [
                each for each in waiting if each.parent and each.parent.state_index != NOT_READ
            ]
            length = max(len(each.bases) for each in ready)
            now = [each for each in ready if len(each.bases) == length]
            num_rows = self.shapes.piece_rows(length)
            for first in range(0, len(now), num_rows):
                yield self._launch(now[first : first + num_rows], length, num_rows)
            waiting = [each for each in waiting if each.state_index == NOT_READ]

    def _read_suffixes(self) -> Iterator["_Result"]:
        """Read suffixes of more than a base; that of one is in the predictions of its prefix."""
        by_length: dict[int, list[Suffix]] = defaultdict(list)
        for suffix in self._suffixes:
            if len(suffix.bases) > 1:
                by_length[self.shapes.padded(len(suffix.bases))].append(suffix)
        for length, suffixes in by_length.items():
            num_rows = self.shapes.rows(length)
            for first in range(0, len(suffixes), num_rows):
                yield self._launch(suffixes[first : first + num_rows], length, num_rows)

    def _launch(self, rows: Sequence[Prefix | Suffix], length: int, num_rows: int) -> "_Result":
        """Read rows in one launch, and store the states after those that are prefixes."""
        ids_BL = np.full((num_rows, length), PAD_TOKEN, np.uint8)
        # Length of the row; state index and length of its prefix.
        numbers_3B = np.zeros((3, num_rows), np.int64)
        letters = [row.bases for row in rows]
        parents = [row.parent or self.root for row in rows]
        longest = max(parent.length for parent in parents) if self._is_paged else 0
        page_table_BT = np.zeros((num_rows, longest), np.int32)
        for index, (bases, parent) in enumerate(zip(letters, parents, strict=True)):
            ids_BL[index, : len(bases)] = np.frombuffer(bases, np.uint8)
            numbers_3B[:, index] = len(bases), parent.state_index, parent.length
            if index and parent is parents[index - 1]:
                page_table_BT[index] = page_table_BT[index - 1]
            elif self._is_paged:
                parent.write_page_table(page_table_BT[index])
        new_states_N = new_pages_NL = None
        prefixes = [row for row in rows if isinstance(row, Prefix)]
        if prefixes:
            states, self._free_states = _split(self._free_states, len(prefixes))
            new_states_N = self._on_device(np.array(states))
            for prefix, state in zip(prefixes, states, strict=True):
                prefix.state_index = state
        if prefixes and self._is_paged:
            taken, self._free_pages = _split(self._free_pages, len(prefixes) * length)
            own_NL = taken.reshape(len(prefixes), length)
            new_pages_NL = self._on_device(own_NL.astype(np.int64))
            for prefix, own_L in zip(prefixes, own_NL, strict=True):
                prefix.pages = own_L
        lengths_B, prefix_states_B, past_lengths_B = self._on_device(numbers_3B)
        launch = Launch(
            prefix_states_B,
            past_lengths_B.int(),
            self._on_device(page_table_BT),
            new_states_N,
            new_pages_NL,
        )
        logprobs_BL = self._logprobs(self._on_device(ids_BL).long(), lengths_B, launch)
        last_B = logprobs_BL.gather(1, (lengths_B - 1).clamp(min=0)[:, None])[:, 0]
        totals_B2 = torch.stack([logprobs_BL.sum(dim=1), last_B], dim=1)
        kept = [index for index, row in enumerate(rows) if _keeps_all(row)]
        return _Result(
            rows,
            totals_B2[: len(rows)],
            logprobs_BL[kept] if kept else None,
            [rows[index] for index in kept],
        )

    def _on_device(self, numbers: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)

    def _logprobs(self, ids_BL: Tensor, lengths_B: Tensor, launch: Launch) -> Tensor:
        """Log-probabilities [B, L] of the bases of the rows, fp64; 0 where there is none."""
        model = self._model
        x_BLD = model.embedding(ids_BL)
        for block, pool in zip(model.blocks, self._pools, strict=True):
            x_BLD, _ = block(x_BLD, Pooled(pool, launch))
        logprobs_BLV = model.unembed(x_BLD).log_softmax(dim=-1)
        if self._next_SV is None:
            self._next_SV = logprobs_BLV.new_zeros(self._num_states, logprobs_BLV.shape[2])
        prefix_next_BV = self._next_SV[launch.prefix_states_B]  # 0 after the empty prefix
        first_B1 = prefix_next_BV.gather(1, ids_BL[:, :1])
        rest_BL = logprobs_BLV[:, :-1].gather(2, ids_BL[:, 1:, None])[:, :, 0]
        logprobs_BL = torch.cat([first_B1, rest_BL], dim=1).double()
        if launch.new_states_N is not None:
            kept_NV = logprobs_BLV[: len(launch.new_states_N), -1]
            self._next_SV.index_copy_(0, launch.new_states_N, kept_NV)
        positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return logprobs_BL.masked_fill(positions_L >= lengths_B[:, None], 0)

    def _read_single(self, suffixes: list[Suffix]) -> Tensor | None:
        """Log-probabilities of suffixes of one base, from the predictions of their prefixes."""
        if not suffixes or self._next_SV is None:
            return None
        states = self._on_device(np.array([suffix.parent.state_index for suffix in suffixes]))
        letters = self._on_device(np.array([suffix.bases[0] for suffix in suffixes]))
        return self._next_SV[states, letters].double()


@dataclass(frozen=True)
class _Result:
    """The results of a launch, on the device.

    Attributes:
        rows: Its rows, without the empty ones.
        totals_N2: Log-likelihood of the bases of each row, and the log-probability of its last
            base, fp64.
        logprobs_KL: Log-probability of each base of the rows that keep them, fp64.
        kept: The rows of `logprobs_KL`.
    """

    rows: "Sequence[Prefix | Suffix]"
    totals_N2: Tensor
    logprobs_KL: Tensor | None
    kept: "Sequence[Prefix | Suffix]"


@dataclass
class Batch:
    """The results of one `Packer.read`, on the device until they are collected.

    Attributes:
        results: Results of its launches, in order.
        single: Suffixes of one base.
        values_N: Log-probabilities of `single`; None if these are first bases, which have none.
        earlier: The previous batch, whose prefixes may be continued here; None once collected.
    """

    results: list[_Result]
    single: list[Suffix]
    values_N: Tensor | None
    earlier: "Batch | None"

    def collect(self) -> None:
        """Copy the log-likelihoods into the prefixes and suffixes, earlier batches first."""
        if self.earlier is not None:
            self.earlier.collect()
            self.earlier = None
        rows = [row for result in self.results for row in result.rows]
        totals = torch.cat([result.totals_N2 for result in self.results]).tolist() if rows else []
        for row, (logprob, last) in zip(rows, totals, strict=True):
            assert row.parent is not None
            row.logprob = row.parent.logprob + logprob
            if isinstance(row, Suffix):
                row.last = last
        for result in self.results:
            if result.logprobs_KL is not None:
                # Summed here, since a GPU may sum a single row in any order.
                logprobs_KL = result.logprobs_KL.cpu().numpy()
                for row, logprobs_L in zip(result.kept, logprobs_KL, strict=True):
                    row.logprobs = np.cumsum(logprobs_L[: len(row.bases)])
        values = [0.0] * len(self.single) if self.values_N is None else self.values_N.tolist()
        for suffix, value in zip(self.single, values, strict=True):
            suffix.last, suffix.logprob = value, suffix.parent.logprob + value
            suffix.logprobs = np.array([value])
        self.results, self.single, self.values_N = [], [], None  # collect them once


def _keeps_all(row: Prefix | Suffix) -> bool:
    """Whether the log-likelihoods up to each base are kept; a chunk may be part of a suffix."""
    return row.cumulative if isinstance(row, Suffix) else len(row.bases) == CHUNK


def _split(things: Any, count: int) -> tuple[Any, Any]:
    """The last `count` of a sequence, and those before."""
    return things[len(things) - count :], things[: len(things) - count]
