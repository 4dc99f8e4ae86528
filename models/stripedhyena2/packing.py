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

from stripedhyena2.cache import Launch, Pooled, with_room
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
NOT_READ = -1  # in place of a slot
NO_PLACES = np.zeros(0, np.int32)


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
        found = first + (before - first) // GRANULARITY * GRANULARITY
        earliest = before + rest - self.padded(before + rest - found)
        if earliest <= first:
            return first
        size = GRANULARITY
        while (rounder := first + (found - first) // (2 * size) * (2 * size)) >= earliest:
            found, size = rounder, 2 * size
        return found


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
        "parent",
        "places",
        "slot",
        "suffixes",
    )

    def __init__(self, parent: "Prefix | None", bases: bytes) -> None:
        self.parent, self.bases = parent, bases
        self.length: int = len(bases) + (parent.length if parent else 0)
        self.logprob = 0.0
        self.logprobs: Floats | None = None  # up to each base of this piece; only of chunks
        self.slot = NOT_READ
        self.places = NO_PLACES  # of the tokens of this piece
        self.batch = 0  # the last one that uses it
        self.children: dict[bytes, Prefix] = {}
        self.suffixes: dict[bytes, Suffix] = {}

    def put_places(self, places_T: npt.NDArray[np.int32]) -> None:
        """Write the places of all its tokens to the beginning of an array."""
        piece: Prefix = self
        while piece.parent is not None:
            places_T[piece.parent.length : piece.length] = piece.places
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
    """Reads sequences in batches.

    Sequences are queued first (`prefix`, `suffix`). Then `read` reads all of them, and `collect`
    gives them their log-likelihoods. Prefixes that the next batch uses again stay in the cache.

    Args:
        model: Model in inference mode.
        shapes: The launches; None for those of its device.
        brief: Whether other work waits, so that a batch is no more than a launch or two.
        counts_only: Compute nothing, and let all log-likelihoods be 0.

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
        self.root.slot = 0
        self.num_bases = 0
        self._model, self._counts_only, self._brief = model, counts_only, brief
        self._device = model.embedding.weight.device
        self._pools = [mixer.new_pool() for mixer in model.mixers]
        self._uses_places = any(pool.uses_places for pool in self._pools)
        self._next_SV: Tensor | None = None  # log-probabilities after each prefix, by its slot
        self._num_slots = self._num_places = 1
        self._free_slots: list[int] = []
        self._free_places = NO_PLACES
        element, config = model.embedding.weight.element_size(), model.config
        fixed, growing = (
            sum(mixer.state_bytes(config, tokens, element) for mixer in config.mixers)
            for tokens in (0, 1)
        )
        self._bytes = fixed, growing - fixed  # of a slot, of a place
        multiply_adds = sum(parameter.numel() for parameter in model.parameters())
        most = min(MAX_MULTIPLY_ADDS / multiply_adds, MAX_TOKENS)
        if brief or not self.shapes.tokens:
            most = 0
        self._most_tokens = max(most, self.shapes.tokens, 1)
        self._batch = 0
        self._last: Batch | None = None
        self._begin()

    def _begin(self) -> None:
        """Begin a batch."""
        self._batch += 1
        self._prefixes: list[Prefix] = []  # to read
        self._suffixes: list[Suffix] = []
        self._tokens = self._used_slots = self._used_places = 0
        self._most_bytes = math.inf
        if self._device.type == "cuda":
            pools = self._size(self._num_slots, self._num_places)
            self._most_bytes = MAX_MEMORY_SHARE * (free_bytes(self._device) + pools)

    def _size(self, num_slots: int, num_places: int) -> int:
        """Bytes of cached prefixes."""
        slot, place = self._bytes
        return num_slots * slot + num_places * place

    @property
    def is_full(self) -> bool:
        """Whether as much is queued as should be read together."""
        used = self._size(self._used_slots, self._used_places)
        return self._tokens >= self._most_tokens or used > self._most_bytes

    def prefix(self, bases: bytes, ends: Iterable[int]) -> Prefix:
        """Ask for the beginning of a sequence.

        Args:
            bases: The sequence, or more than its beginning, in upper-case letters.
            ends: Where its pieces end, in order.
        """
        found = self.root
        for end in ends:
            found = self._piece(found, bases[found.length : end])
        return found

    def _piece(self, parent: Prefix, bases: bytes) -> Prefix:
        found = parent.children.get(bases)
        if found is None:
            found = parent.children[bases] = Prefix(parent, bases)
            self._prefixes.append(found)
            self._tokens += len(bases)
        if found.batch != self._batch:
            found.batch = self._batch
            self._used_slots += 1
            self._used_places += len(bases)
        return found

    def suffix(self, parent: Prefix, bases: bytes, *, cumulative: bool = False) -> Suffix:
        """Ask for a sequence.

        Args:
            parent: Its beginning, queued in the same batch.
            bases: The rest, at least one base, in upper-case letters.
            cumulative: Whether `Suffix.logprob_until` will be called.
        """
        found = parent.suffixes.get(bases)
        if found and found.cumulative >= cumulative:
            found.batch = self._batch
            return found
        prefix, rest = parent, bases
        while len(rest) > CHUNK:
            prefix, rest = self._piece(prefix, rest[:CHUNK]), rest[CHUNK:]
        found = parent.suffixes[bases] = Suffix(prefix, rest, cumulative=cumulative)
        found.batch = self._batch
        self._suffixes.append(found)
        self._tokens += len(rest) if len(rest) > 1 else 0  # a single base is not read
        return found

    @torch.inference_mode()
    def read(self) -> "Batch":
        """Read all that was queued since the last call; numbers are there after `collect`.

        A GPU may still be at work when this returns.
        """
        self._evict()
        self.num_bases += self._tokens
        batch = Batch([], [], None, self._last)
        if self._counts_only:
            for prefix in self._prefixes:
                prefix.slot = 0
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
        free, waiting = [self._free_places], [self.root]
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
                if child.slot > 0:
                    self._free_slots.append(child.slot)
                    free.append(child.places)
            stale = [each for each in prefix.suffixes.items() if each[1].batch != self._batch]
            for bases, _ in stale:
                del prefix.suffixes[bases]
            waiting += prefix.children.values()
        if len(free) > 1:
            self._free_places = np.concatenate(free)

    def _allocate(self) -> None:
        """Make room for the prefixes to read."""
        num_slots = self._num_slots + max(len(self._prefixes) - len(self._free_slots), 0)
        self._free_slots += range(self._num_slots, num_slots)
        num_places = self._num_places
        if self._uses_places:
            needed = sum(len(prefix.bases) for prefix in self._prefixes)
            num_places += max(needed - len(self._free_places), 0)
            new = np.arange(self._num_places, num_places, dtype=np.int32)
            self._free_places = np.concatenate([self._free_places, new])
        if (num_slots, num_places) == (self._num_slots, self._num_places):
            return
        self._num_slots, self._num_places = num_slots, num_places
        for pool in self._pools:
            pool.reserve(num_slots, num_places)
        if self._next_SV is not None:
            self._next_SV = with_room(self._next_SV, num_slots)

    @property
    def runs_ahead(self) -> bool:
        """Whether a GPU may still compute when `read` returns, while more is queued."""
        return self._device.type == "cuda" and not self._brief

    def _read_prefixes(self) -> Iterator["_Result"]:
        """Read pieces whose beginning has been read, the longest first."""
        waiting = self._prefixes
        while waiting:
            ready = [each for each in waiting if each.parent and each.parent.slot != NOT_READ]
            length = max(len(each.bases) for each in ready)
            now = [each for each in ready if len(each.bases) == length]
            num_rows = self.shapes.piece_rows(length)
            for first in range(0, len(now), num_rows):
                yield self._launch(now[first : first + num_rows], length, num_rows)
            waiting = [each for each in waiting if each.slot == NOT_READ]

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
        """Read rows in one launch, and keep what follows if they are prefixes."""
        ids_BL = np.full((num_rows, length), PAD_TOKEN, np.uint8)
        # Tokens of the row; slot and tokens of what comes before.
        numbers_3B = np.zeros((3, num_rows), np.int64)
        letters = [row.bases for row in rows]
        parents = [row.parent or self.root for row in rows]
        most = max(parent.length for parent in parents) if self._uses_places else 0
        places_BT = np.zeros((num_rows, most), np.int32)
        for index, (bases, parent) in enumerate(zip(letters, parents, strict=True)):
            ids_BL[index, : len(bases)] = np.frombuffer(bases, np.uint8)
            numbers_3B[:, index] = len(bases), parent.slot, parent.length
            if index and parent is parents[index - 1]:
                places_BT[index] = places_BT[index - 1]
            elif self._uses_places:
                parent.put_places(places_BT[index])
        new_slots_N = places_NL = None
        prefixes = [row for row in rows if isinstance(row, Prefix)]
        if prefixes:
            slots, self._free_slots = _split(self._free_slots, len(prefixes))
            new_slots_N = self._on_device(np.array(slots))
            for prefix, slot in zip(prefixes, slots, strict=True):
                prefix.slot = slot
        if prefixes and self._uses_places:
            taken, self._free_places = _split(self._free_places, len(prefixes) * length)
            own_NL = taken.reshape(len(prefixes), length)
            places_NL = self._on_device(own_NL.astype(np.int64))
            for prefix, own_L in zip(prefixes, own_NL, strict=True):
                prefix.places = own_L
        lengths_B, prefix_slots_B, pasts_B = self._on_device(numbers_3B)
        launch = Launch(
            prefix_slots_B, pasts_B.int(), self._on_device(places_BT), new_slots_N, places_NL
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
            self._next_SV = logprobs_BLV.new_zeros(self._num_slots, logprobs_BLV.shape[2])
        prefix_next_BV = self._next_SV[launch.prefix_slots_B]  # 0 after the empty prefix
        first_B1 = prefix_next_BV.gather(1, ids_BL[:, :1])
        rest_BL = logprobs_BLV[:, :-1].gather(2, ids_BL[:, 1:, None])[:, :, 0]
        logprobs_BL = torch.cat([first_B1, rest_BL], dim=1).double()
        if launch.new_slots_N is not None:
            kept_NV = logprobs_BLV[: len(launch.new_slots_N), -1]
            self._next_SV.index_copy_(0, launch.new_slots_N, kept_NV)
        positions_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return logprobs_BL.masked_fill(positions_L >= lengths_B[:, None], 0)

    def _read_single(self, suffixes: list[Suffix]) -> Tensor | None:
        """Log-probabilities of suffixes of one base, from the predictions of their prefixes."""
        if not suffixes or self._next_SV is None:
            return None
        slots = self._on_device(np.array([suffix.parent.slot for suffix in suffixes]))
        letters = self._on_device(np.array([suffix.bases[0] for suffix in suffixes]))
        return self._next_SV[slots, letters].double()


@dataclass(frozen=True)
class _Result:
    """What a launch has found, on the device.

    Attributes:
        rows: Its rows, without those that fill it up.
        totals_N2: Log-likelihood of the bases of each, and the log-probability of its last, fp64.
        logprobs_KL: Log-probability of each base of the rows that keep them, fp64.
        kept: These rows.
    """

    rows: "Sequence[Prefix | Suffix]"
    totals_N2: Tensor
    logprobs_KL: Tensor | None
    kept: "Sequence[Prefix | Suffix]"


@dataclass
class Batch:
    """What has been read together, on the device until it is collected.

    Attributes:
        results: Those of its launches, in their order.
        single: Suffixes of one base.
        values_N: Their log-probabilities; None: they are first bases, which have none.
        earlier: The batch before, whose prefixes may be continued here; None: it is collected.
    """

    results: list[_Result]
    single: list[Suffix]
    values_N: Tensor | None
    earlier: "Batch | None"

    def collect(self) -> None:
        """Give prefixes and suffixes their numbers, after those of all batches before."""
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
        self.results, self.single, self.values_N = [], [], None  # once is enough


def _keeps_all(row: Prefix | Suffix) -> bool:
    """Whether its log-likelihoods up to each base are kept; a chunk may be part of a suffix."""
    return row.cumulative if isinstance(row, Suffix) else len(row.bases) == CHUNK


def _split(things: Any, count: int) -> tuple[Any, Any]:
    """The last `count` of a sequence, and those before."""
    return things[len(things) - count :], things[: len(things) - count]
