"""Vectors of one sequence, pooled or kept while the outputs of its layers pass by.

L positions, D channels, R rows: what a vector each is pooled over.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo2cli.embed.layers import Hear, read
from evo2cli.embed.options import Pooling
from evo2cli.errors import UntrustedNumericsError
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.options import Strand
from stripedhyena2 import StripedHyena2
from stripedhyena2.diagnosis import first_nonfinite_layer
from stripedhyena2.scoring import CHUNK, stream_within_memory, token_ids
from stripedhyena2.streaming import Streaming

_BLOCK = 1024  # positions

Spans = Sequence[tuple[int, int]]  # positions [start, end) of a sequence, in order
Advance = Callable[[float], None]


class Kept(Protocol):
    """Vectors of all positions of a sequence, on disk."""

    def write(self, first: int, vectors_LD: NDArray[np.float32]) -> None:
        """Put vectors from position `first` on."""

    def read(self, first: int, count: int) -> NDArray[np.float32]:
        """So many vectors [count, D] as they were put."""


@dataclass(frozen=True)
class Embedder:
    """Reads sequences, each by itself.

    Attributes:
        model: What reads them.
        layers: Names of layers, and channels of each.
        pooling: Of positions.
        strands: Read one after the other; two give their mean.
        advance: Hears how many bases are done; a negative number where one starts anew.
    """

    model: StripedHyena2
    layers: Mapping[str, int]
    pooling: Pooling
    strands: Sequence[Strand]
    advance: Advance = lambda _: None

    def pool(self, name: str, bases: bytes, rows: Sequence[Spans]) -> dict[str, Tensor]:
        """Pool a sequence: fp64 [R, D] on the CPU, by layer.

        Args:
            name: Of the sequence, for messages.
            bases: Upper-case.
            rows: What each vector is pooled over; positions on the forward strand.

        Raises:
            UserError: The memory does not suffice.
            UntrustedNumericsError: A vector is no finite number.
        """

        def read_strands(way: Streaming, advance: Advance) -> dict[str, Tensor]:
            readings = []
            for strand in self.strands:
                places = rows
                if strand is Strand.REVERSE:
                    places = [_mirrored(spans, len(bases)) for spans in rows]
                pools = {
                    layer: _Pool(self.pooling, places, width)
                    for layer, width in self.layers.items()
                }
                listeners = {layer: pool.hear for layer, pool in pools.items()}
                self._read(bases, strand, way, listeners, advance)
                readings.append({layer: pool.vectors() for layer, pool in pools.items()})
            return {
                layer: torch.stack([reading[layer] for reading in readings]).mean(0)
                for layer in self.layers
            }

        vectors = stream_within_memory(self.model, len(bases), read_strands, self.advance)
        for layer, vectors_RD in vectors.items():
            if not bool(torch.isfinite(vectors_RD).all()):
                raise self._distrust(layer, name, bases)
        return vectors

    def keep(self, name: str, bases: bytes, kept: Mapping[str, Kept]) -> None:
        """Put the vectors of all positions of a sequence on disk, whichever strand is read.

        Args:
            name: Of the sequence, for messages.
            bases: Upper-case.
            kept: Where those of each layer go.

        Raises:
            UserError: The memory does not suffice, or the disk.
            UntrustedNumericsError: A vector is no finite number.
        """

        def writer(layer: str, strand: Strand, is_second: bool) -> Hear:
            def write(start: int, x_LD: Tensor) -> None:
                values, first = x_LD.cpu().float().numpy(), start
                if not np.isfinite(values).all():
                    raise _NotFiniteError(layer)
                if strand is Strand.REVERSE:
                    values, first = values[::-1], len(bases) - start - len(values)
                if is_second:
                    values = (kept[layer].read(first, len(values)) + values) / 2
                kept[layer].write(first, values)

            return write

        def read_strands(way: Streaming, advance: Advance) -> None:
            for place, strand in enumerate(self.strands):
                listeners = {layer: writer(layer, strand, place > 0) for layer in self.layers}
                self._read(bases, strand, way, listeners, advance)

        try:
            stream_within_memory(self.model, len(bases), read_strands, self.advance)
        except _NotFiniteError as error:
            raise self._distrust(str(error), name, bases) from None

    def _read(
        self,
        bases: bytes,
        strand: Strand,
        way: Streaming,
        listeners: Mapping[str, Hear],
        advance: Advance,
    ) -> None:
        letters = bases if strand is Strand.FORWARD else reverse_complement(bases)
        ids_L, share = token_ids(self.model, letters), 1 / len(self.strands)
        read(self.model, ids_L, way, listeners, lambda count: advance(count * share))

    def _distrust(self, layer: str, name: str, bases: bytes) -> UntrustedNumericsError:
        """What is to be said of a layer whose outputs are no finite numbers."""
        ids_L = token_ids(self.model, bases[:CHUNK])
        origin = first_nonfinite_layer(self.model, ids_L[None])
        first = f", first in layer {origin}" if origin else ""
        return UntrustedNumericsError(
            f"{name}: the output of {layer} is NaN or infinite{first}; try --dtype fp32, or other "
            "weights"
        )


class _NotFiniteError(Exception):
    """The layer of this name has given NaN or infinity."""


class _Pool:
    """The vectors of all rows in one layer, growing as its outputs are heard.

    Sums are fp64, so that where the pieces end leaves no trace.
    """

    def __init__(self, pooling: Pooling, rows: Sequence[Spans], width: int) -> None:
        if pooling is Pooling.LAST:
            rows = [[(spans[-1][1] - 1, spans[-1][1])] for spans in rows]
        self._is_max = pooling is Pooling.MAX
        self._spans = [(*span, row) for row, spans in enumerate(rows) for span in spans]
        counts = [sum(end - start for start, end in spans) for spans in rows]
        self._counts_R1 = torch.tensor(counts, dtype=torch.float64)[:, None]
        start = -torch.inf if self._is_max else 0.0
        self._pooled_RD = torch.full((len(rows), width), start, dtype=torch.float64)

    def hear(self, start: int, x_LD: Tensor) -> None:
        """Take in the outputs at positions from `start` on."""
        end = start + len(x_LD)
        here = [
            (max(first, start) - start, min(last, end) - start, row)
            for first, last, row in self._spans
            if first < end and start < last
        ]
        if not here:
            return
        # One transfer a piece, however many rows it holds.
        parts = torch.stack([self._reduced(x_LD[first:last]) for first, last, _ in here]).cpu()
        for part_D, (_, _, row) in zip(parts, here, strict=True):
            pooled_D = self._pooled_RD[row]
            if self._is_max:
                torch.maximum(pooled_D, part_D, out=pooled_D)
            else:
                pooled_D += part_D

    def _reduced(self, x_LD: Tensor) -> Tensor:
        if self._is_max:
            return x_LD.amax(0).double()
        # A sum in fp64 of other numbers is made of a copy; blocks keep that small.
        sums = [block_LD.sum(0, dtype=torch.float64) for block_LD in torch.split(x_LD, _BLOCK)]
        return torch.stack(sums).sum(0)

    def vectors(self) -> Tensor:
        """What has been pooled [R, D], all outputs heard."""
        return self._pooled_RD if self._is_max else self._pooled_RD / self._counts_R1


def _mirrored(spans: Spans, length: int) -> Spans:
    """The same positions on the other strand, in the order they are read there."""
    return [(length - end, length - start) for start, end in reversed(spans)]
