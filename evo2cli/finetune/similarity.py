"""Cluster sequences that are copies or near copies of each other, on either strand, by MinHash.

The sketch of a sequence is the set of the `SKETCH` smallest hashes of its canonical k-mers
(K = 16, a k-mer and its reverse complement counting as one); k-mers with letters other than A, C, G
and T are left out. The similarity of two sequences is the number of hashes in both sketches divided
by the size of the larger sketch: about the fraction of k-mers that they share. Sequences share half
of their k-mers if they overlap by half, or differ in 4 % of their bases.

Candidate pairs are found by prefix filtering: two sequences whose similarity is at least t share at
least ceil(t * n) of the n hashes of either, so they share one of the first n - ceil(t * n) + 1
hashes of both, in any order common to all. Only such pairs are compared. The order has the rarest
hashes first, so that few unrelated pairs are.

N sequences, S hashes of a sketch, P pairs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from evo2cli.genome.alphabet import reverse_complement

K = 16  # bases
SKETCH = 64  # hashes
NEAR = 0.5  # similarity of near copies
_ABSENT = np.uint32(0xFFFFFFFF)  # pads the rows of small sketches; no k-mer has this hash
_BATCH = 1 << 20  # bases sketched at a time
_SPARE = 2.5  # hashes that are sorted, as a multiple of the sketch size
_PAIRS = 1 << 12  # pairs compared at a time
_SMALL = 16  # sequences sharing a hash, up to which all pairs of them are listed

BASE_CODES = np.full(256, 4, np.uint8)  # by byte: 0 to 3 for A, C, G and T, 4 for any other
BASE_CODES[np.frombuffer(b"ACGT", np.uint8)] = range(4)

Indices = NDArray[np.int64]
Sketches = NDArray[np.uint32]


Entry = tuple[str, ...]  # a sequence, or both of a pair


def canonical(entry: Entry) -> Entry:
    """The lexicographically smaller of an entry and its reverse complement."""
    return min(entry, tuple(reverse_complement(text.encode()).decode() for text in entry))


def number_copies(entries: Sequence[Entry]) -> tuple[Indices, list[Entry]]:
    """Number the distinct entries; returns the number [N] of each entry, and the distinct ones.

    Copies on either strand have the same number.
    """
    first: dict[Entry, int] = {}
    numbers = [first.setdefault(canonical(entry), len(first)) for entry in entries]
    return np.array(numbers, np.int64), list(first)


def cluster(entries: Sequence[Entry], similarity: float = NEAR) -> Indices:
    """Single-linkage clustering; returns the cluster number [N] of each entry.

    Entries that are copies, or at least this similar, are in the same cluster. The k-mers of a pair
    are those of both of its sequences.
    """
    copies_N, entries = number_copies(entries)
    distinct = ["N".join(entry) for entry in entries]
    groups = UnionFind(len(distinct))
    sketches_NS = sketch(distinct)
    small, large = _candidates(sketches_NS, similarity)
    for pairs_P2 in small:
        is_near_P = similarities(sketches_NS, pairs_P2) >= similarity
        for one, other in pairs_P2[is_near_P].tolist():
            groups.union(one, other)
    for members in large:
        _link(groups, sketches_NS, members, similarity)
    numbers: dict[int, int] = {}
    clusters = [numbers.setdefault(groups.find(row), len(numbers)) for row in copies_N.tolist()]
    return np.array(clusters, np.int64)


class UnionFind:
    """Disjoint sets of the numbers below `count`."""

    def __init__(self, count: int) -> None:
        self._parents = list(range(count))

    def find(self, item: int) -> int:
        """The representative of the set of `item`."""
        parents = self._parents
        while parents[item] != item:
            parents[item] = parents[parents[item]]
            item = parents[item]
        return item

    def union(self, one: int, other: int) -> None:
        """Merge the sets of two items."""
        self._parents[self.find(other)] = self.find(one)


def sketch(sequences: Sequence[str]) -> Sketches:
    """The sketch [N, S] of each sequence, ascending; small ones are padded with `_ABSENT`."""
    sketches_NS = np.full((len(sequences), SKETCH), _ABSENT)
    start = size = 0
    for stop, sequence in enumerate(sequences, start=1):
        size += len(sequence) + 1
        if size >= _BATCH or stop == len(sequences):
            _sketch_batch(sequences[start:stop], sketches_NS[start:stop])
            start, size = stop, 0
    return sketches_NS


def _sketch_batch(sequences: Sequence[str], sketches_NS: Sketches) -> None:
    """Sketch a batch of sequences into their rows."""
    text = np.frombuffer("\n".join(sequences).encode(), np.uint8)
    if len(text) < K:
        return
    codes = BASE_CODES[text]
    num_other = np.concatenate([[0], (codes > 3).cumsum(dtype=np.int32)])
    is_kmer = num_other[K:] == num_other[:-K]
    hashes = _hash(_canonical_kmers(codes & np.uint8(3)))
    lengths = np.array([len(sequence) + 1 for sequence in sequences])
    owners = np.repeat(np.arange(len(sequences)), lengths)[: len(hashes)]
    # Hashes above these limits are not needed, unless many k-mers are the same.
    limits = np.minimum(_SPARE * SKETCH / lengths, 1) * float(_ABSENT)
    is_low = is_kmer & (hashes <= limits.astype(np.uint32)[owners])
    counts = _keep_smallest(owners[is_low], hashes[is_low], sketches_NS)
    is_short = (counts < SKETCH) & (limits < float(_ABSENT))
    is_again = is_kmer & is_short[owners]
    _keep_smallest(owners[is_again], hashes[is_again], sketches_NS)


def _keep_smallest(owners: Indices, hashes: Sketches, sketches_NS: Sketches) -> Indices:
    """Write the smallest distinct hashes of each sequence; returns the number of distinct ones."""
    keys = np.sort((owners.astype(np.uint64) << np.uint64(32)) | hashes)
    keys = keys[np.diff(keys, prepend=~np.uint64(0)) != 0]
    owners = (keys >> np.uint64(32)).astype(np.int64)
    counts = np.bincount(owners, minlength=len(sketches_NS))
    ranks = np.arange(len(keys)) - (counts.cumsum() - counts)[owners]
    is_kept = ranks < SKETCH
    sketches_NS[owners[is_kept], ranks[is_kept]] = keys[is_kept].astype(np.uint32)
    return counts


def _canonical_kmers(codes: NDArray[np.uint8]) -> Sketches:
    """The smaller of each k-mer and its reverse complement, two bits per base."""
    forward, reverse = codes.astype(np.uint32), (3 - codes).astype(np.uint32)
    bases = 1
    while bases < K:  # each round joins adjacent words into words twice as long
        bits = np.uint32(2 * bases)
        forward = (forward[:-bases] << bits) | forward[bases:]
        reverse = (reverse[bases:] << bits) | reverse[:-bases]
        bases *= 2
    return np.minimum(forward, reverse)


def _hash(words: Sketches) -> Sketches:
    """Hash 32-bit words; a bijection, except that two words share a hash.

    Source: the finalizer of MurmurHash3 (Austin Appleby, public domain).
    """
    words = words ^ (words >> np.uint32(16))
    words = words * np.uint32(0x85EBCA6B)
    words ^= words >> np.uint32(13)
    words = words * np.uint32(0xC2B2AE35)
    words ^= words >> np.uint32(16)
    return np.minimum(words, _ABSENT - np.uint32(1))


def _candidates(
    sketches_NS: Sketches, similarity: float
) -> tuple[Iterator[Indices], list[Indices]]:
    """Pairs [P, 2] to compare, and larger sets of sequences to compare all against all."""
    is_hash_NS = sketches_NS != _ABSENT
    sizes_N = is_hash_NS.sum(axis=1)
    hashes, inverse, counts = np.unique(
        sketches_NS[is_hash_NS], return_inverse=True, return_counts=True
    )
    rows = np.repeat(np.arange(len(sketches_NS)), sizes_N)
    order = np.lexsort((inverse, counts[inverse], rows))  # within a row, the rarest hashes first
    inverse = inverse[order]
    starts_N = np.cumsum(sizes_N) - sizes_N
    ranks = np.arange(len(rows)) - starts_N[rows]
    needed_N = np.ceil(similarity * sizes_N - 1e-9).astype(np.int64)
    is_prefix = ranks < (sizes_N - np.maximum(needed_N, 1) + 1)[rows]
    rows, inverse = rows[is_prefix], inverse[is_prefix]
    order = np.lexsort((rows, inverse))
    rows, inverse = rows[order], inverse[order]
    borders = np.flatnonzero(np.diff(inverse, prepend=-1, append=len(hashes)))
    sizes = np.diff(borders)
    large = [
        rows[borders[bucket] : borders[bucket + 1]] for bucket in np.flatnonzero(sizes > _SMALL)
    ]
    is_small = np.repeat(sizes <= _SMALL, sizes)
    return _pairs(rows[is_small], inverse[is_small], len(sketches_NS)), large


def _pairs(rows: Indices, inverse: Indices, count: int) -> Iterator[Indices]:
    """Distinct pairs [P, 2] of rows that share a hash, in batches."""
    keys = []
    for offset in range(1, _SMALL):
        is_same = inverse[offset:] == inverse[:-offset]
        keys.append(rows[:-offset][is_same] * count + rows[offset:][is_same])
    pairs = np.unique(np.concatenate(keys))
    for start in range(0, len(pairs), _PAIRS):
        yield np.stack(np.divmod(pairs[start : start + _PAIRS], count), axis=1)


def similarities(sketches_NS: Sketches, pairs_P2: Indices) -> NDArray[np.float64]:
    """The similarity [P] of each pair of sequences."""
    one_PS, other_PS = (sketches_NS[pairs_P2[:, side]] for side in (0, 1))
    both_PS = np.sort(np.concatenate([one_PS, other_PS], axis=1), axis=1)
    is_shared_PS = (both_PS[:, 1:] == both_PS[:, :-1]) & (both_PS[:, 1:] != _ABSENT)
    sizes_P = np.maximum((one_PS != _ABSENT).sum(axis=1), (other_PS != _ABSENT).sum(axis=1))
    return np.asarray(is_shared_PS.sum(axis=1) / np.maximum(sizes_P, 1))


def _link(groups: UnionFind, sketches_NS: Sketches, members: Indices, similarity: float) -> None:
    """Merge the members that are similar; members of the same set are not compared again."""
    for index, member in enumerate(members.tolist()):
        roots = np.array([groups.find(other) for other in members.tolist()])
        if (roots == roots[0]).all():
            return
        others = members[index + 1 :][roots[index + 1 :] != roots[index]]
        for start in range(0, len(others), _PAIRS):
            batch = others[start : start + _PAIRS]
            pairs_P2 = np.stack([np.full_like(batch, member), batch], axis=1)
            for other in batch[similarities(sketches_NS, pairs_P2) >= similarity].tolist():
                groups.union(member, other)
