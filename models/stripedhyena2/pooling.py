"""Embeddings of sequences: outputs of layers, pooled over positions or kept position by position.

A sequence streams through the model and is pooled chunk by chunk, so memory does not grow with
length times width. Sums over positions are in fp64, so that chunk borders have no effect.

N sequences, L positions, D channels of a layer, R rows: the vectors of one sequence.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from stripedhyena2.dna import as_read, check_sequences, strand_of, strands_of
from stripedhyena2.errors import NonFiniteError, check_choice
from stripedhyena2.layers import Listener, layer_widths, resolve_layers, stream_layers
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.scoring import nonfinite_error, stream_within_memory, token_ids
from stripedhyena2.streaming import Streaming

if TYPE_CHECKING:
    from stripedhyena2.model import StripedHyena2

POOLS = ("mean", "last", "max", "none")
_BLOCK = 1024  # positions that are converted to fp64 at once

Spans = Sequence[tuple[int, int]]  # intervals [start, end) of a sequence, ascending


class PositionStore(Protocol):
    """The outputs of one layer at all positions of a sequence."""

    def write(self, start: int, x_LD: Tensor) -> None:
        """Store the vectors of the positions from `start` on."""

    def read(self, start: int, count: int) -> Tensor:
        """The stored vectors [count, D] of the positions from `start` on."""


def embed_sequences(
    model: "StripedHyena2",
    sequences: Sequence[str | bytes],
    *,
    layers: str | Sequence[str] | None = None,
    pool: str = "mean",
    strand: str = "fwd",
    max_memory: float | None = None,
    progress: Progress = ignore_progress,
) -> dict[str, Tensor] | dict[str, list[Tensor]]:
    """Implements `StripedHyena2.embed`, with the same arguments, result and errors."""
    check_choice("pool", pool, POOLS)
    strands = strands_of(strand)
    widths = layer_widths(model, resolve_layers(model, layers))
    letters = [as_read(sequence) for sequence in check_sequences(sequences, strands=strands)]
    dtype = torch.promote_types(model.embedding.weight.dtype, torch.float32)
    names = [f"sequence {index}" for index in range(len(letters))]
    if pool == "none":
        kept: dict[str, list[Tensor]] = {layer: [] for layer in widths}
        for name, bases in zip(names, letters, strict=True):
            stores = {
                layer: _InMemory(torch.empty(len(bases), width, dtype=dtype))
                for layer, width in widths.items()
            }
            keep_positions(
                model, bases, stores, strands, name=name, max_memory=max_memory, progress=progress
            )
            for layer, store in stores.items():
                kept[layer].append(store.vectors_LD)
        return kept
    pooled = {
        layer: torch.empty(len(letters), width, dtype=dtype) for layer, width in widths.items()
    }
    for index, (name, bases) in enumerate(zip(names, letters, strict=True)):
        whole = [[(0, len(bases))]]
        vectors = pool_positions(
            model,
            bases,
            widths,
            whole,
            pool,
            strands,
            name=name,
            max_memory=max_memory,
            progress=progress,
        )
        for layer, vectors_RD in vectors.items():
            pooled[layer][index] = vectors_RD[0]
    return pooled


def pool_positions(
    model: "StripedHyena2",
    bases: bytes,
    widths: Mapping[str, int],
    rows: Sequence[Spans],
    pool: str,
    strands: Sequence[str],
    *,
    name: str,
    context: bytes = b"",
    max_memory: float | None = None,
    progress: Progress = ignore_progress,
) -> dict[str, Tensor]:
    """Pool the outputs of layers over parts of a sequence.

    Args:
        model: The model.
        bases: Upper-case letters.
        widths: The number of channels of each layer, by its name.
        rows: For each vector, the positions on the forward strand that it is pooled over.
        pool: "mean" or "max" of the positions, or "last": the position read last.
        strands: "fwd", "rc" or both, in which case the vectors are averaged.
        name: What messages call the sequence.
        context: Letters that are read before the bases of either strand, e.g. a lineage tag; their
            outputs are not pooled.
        max_memory: As for `scoring.sequence_logprob`.
        progress: See `stripedhyena2.progress`.

    Returns:
        Vectors [R, D] of each layer, fp64 on the CPU.

    Raises:
        InputError: The sequence does not fit into memory.
        NonFiniteError: A vector is NaN or infinite.
    """

    def compute(streaming: Streaming, progress: Progress) -> dict[str, Tensor]:
        readings = []
        for strand in strands:
            spans = rows
            if strand == "rc":
                spans = [_mirrored(row, len(bases)) for row in rows]
            pools = {layer: _Pool(pool, spans, width) for layer, width in widths.items()}
            listeners = {layer: pooled.add for layer, pooled in pools.items()}
            read = context + strand_of(bases, strand)
            _read_strand(model, read, len(context), streaming, listeners, progress, len(strands))
            readings.append({layer: pooled.vectors() for layer, pooled in pools.items()})
        return {
            layer: torch.stack([reading[layer] for reading in readings]).mean(0) for layer in widths
        }

    num_letters = len(context) + len(bases)
    vectors = stream_within_memory(model, num_letters, compute, progress, max_memory)
    for layer, vectors_RD in vectors.items():
        if not bool(torch.isfinite(vectors_RD).all()):
            raise _not_finite(model, context + bases, layer, name)
    return vectors


def keep_positions(
    model: "StripedHyena2",
    bases: bytes,
    stores: Mapping[str, PositionStore],
    strands: Sequence[str],
    *,
    name: str,
    context: bytes = b"",
    max_memory: float | None = None,
    progress: Progress = ignore_progress,
) -> None:
    """Store the outputs of layers at all positions; vector i belongs to base i on either strand.

    Args:
        model: The model.
        bases: Upper-case letters.
        stores: Where the outputs of each layer go, by its name.
        strands: "fwd", "rc" or both, in which case the vectors of a base are averaged.
        name: What messages call the sequence.
        context: As for `pool_positions`.
        max_memory: As for `scoring.sequence_logprob`.
        progress: See `stripedhyena2.progress`.

    Raises:
        InputError: The sequence does not fit into memory.
        NonFiniteError: A vector is NaN or infinite.
    """

    def writer(layer: str, strand: str, is_second: bool) -> Listener:
        store = stores[layer]

        def write(start: int, x_LD: Tensor) -> None:
            x_LD = x_LD.cpu()
            if not bool(torch.isfinite(x_LD).all()):
                raise _NotFiniteError(layer)
            if strand == "rc":
                start, x_LD = len(bases) - start - len(x_LD), x_LD.flip(0)
            if is_second:
                first_LD = store.read(start, len(x_LD))
                x_LD = (first_LD + x_LD.to(first_LD.dtype)) / 2
            store.write(start, x_LD)

        return write

    def compute(streaming: Streaming, progress: Progress) -> None:
        for index, strand in enumerate(strands):
            listeners = {layer: writer(layer, strand, index > 0) for layer in stores}
            read = context + strand_of(bases, strand)
            _read_strand(model, read, len(context), streaming, listeners, progress, len(strands))

    try:
        stream_within_memory(model, len(context) + len(bases), compute, progress, max_memory)
    except _NotFiniteError as error:  # the diagnosis runs the model without these listeners
        raise _not_finite(model, context + bases, str(error), name) from None


class _NotFiniteError(Exception):
    """An output of the layer of this name is NaN or infinite."""


def _read_strand(
    model: "StripedHyena2",
    letters: bytes,
    num_context: int,
    streaming: Streaming,
    listeners: Mapping[str, Listener],
    progress: Progress,
    num_strands: int,
) -> None:
    """Read a strand; listeners get the outputs after `num_context` letters, with positions from 0.

    Progress counts only these positions.
    """

    def after_context(listen: Listener, start: int, x_LD: Tensor) -> None:
        inside = max(num_context - start, 0)
        if inside < len(x_LD):
            listen(start + inside - num_context, x_LD[inside:])

    share = (len(letters) - num_context) / len(letters) / num_strands
    stream_layers(
        model,
        token_ids(model, letters),
        streaming,
        {layer: partial(after_context, listen) for layer, listen in listeners.items()},
        lambda count: progress(count * share),
    )


def _not_finite(model: "StripedHyena2", bases: bytes, layer: str, name: str) -> NonFiniteError:
    return nonfinite_error(f"{name}: the output of {layer} is NaN or infinite", model, bases)


class _InMemory:
    """A `PositionStore` in memory."""

    def __init__(self, vectors_LD: Tensor) -> None:
        self.vectors_LD = vectors_LD

    def write(self, start: int, x_LD: Tensor) -> None:
        self.vectors_LD[start : start + len(x_LD)] = x_LD

    def read(self, start: int, count: int) -> Tensor:
        return self.vectors_LD[start : start + count]


class _Pool:
    """The vectors of all rows in one layer, accumulated chunk by chunk.

    Args:
        pool: "mean", "max" or "last".
        rows: The positions of each row.
        width: The number of channels.
    """

    def __init__(self, pool: str, rows: Sequence[Spans], width: int) -> None:
        if pool == "last":
            rows = [[(spans[-1][1] - 1, spans[-1][1])] for spans in rows]
        self._is_max = pool == "max"
        self._spans = [(*span, row) for row, spans in enumerate(rows) for span in spans]
        counts = [sum(end - start for start, end in spans) for spans in rows]
        self._counts_R1 = torch.tensor(counts, dtype=torch.float64)[:, None]
        start = -torch.inf if self._is_max else 0.0
        self._pooled_RD = torch.full((len(rows), width), start, dtype=torch.float64)

    def add(self, start: int, x_LD: Tensor) -> None:
        """Add the outputs at the positions from `start` on."""
        end = start + len(x_LD)
        here = [
            (max(first, start) - start, min(last, end) - start, row)
            for first, last, row in self._spans
            if first < end and start < last
        ]
        if not here:
            return
        # One transfer per chunk, whatever the number of rows.
        parts = torch.stack([self._reduce(x_LD[first:last]) for first, last, _ in here]).cpu()
        for part_D, (_, _, row) in zip(parts, here, strict=True):
            pooled_D = self._pooled_RD[row]
            if self._is_max:
                torch.maximum(pooled_D, part_D, out=pooled_D)
            else:
                pooled_D += part_D

    def _reduce(self, x_LD: Tensor) -> Tensor:
        if self._is_max:
            return x_LD.amax(0).double()
        # An fp64 sum of narrower dtypes converts its input first; blocks keep that copy small.
        blocks = torch.split(x_LD, _BLOCK)
        return torch.stack([block_LD.sum(0, dtype=torch.float64) for block_LD in blocks]).sum(0)

    def vectors(self) -> Tensor:
        """The pooled vectors [R, D], after all outputs have been added."""
        return self._pooled_RD if self._is_max else self._pooled_RD / self._counts_R1


def _mirrored(spans: Spans, length: int) -> Spans:
    """The same positions on the other strand, in the order in which they are read there."""
    return [(length - end, length - start) for start, end in reversed(spans)]
