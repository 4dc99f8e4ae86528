"""Vectors of one sequence for `evo2 embed`: pooled, or kept on disk position by position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo2cli.embed.options import Pooling
from evo2cli.options import Strand
from stripedhyena2 import StripedHyena2
from stripedhyena2.pooling import Spans, keep_positions, pool_positions
from stripedhyena2.progress import Progress, ignore_progress


class Kept(Protocol):
    """The vectors of all positions of a sequence, on disk."""

    def write(self, first: int, vectors_LD: NDArray[np.float32]) -> None:
        """Store the vectors of the positions from `first` on."""

    def read(self, first: int, count: int) -> NDArray[np.float32]:
        """The stored vectors [count, D] of the positions from `first` on."""


@dataclass(frozen=True)
class Embedder:
    """Embeds sequences, each by itself.

    Attributes:
        model: The model.
        layers: The number of channels of each layer, by its name.
        pooling: How positions are pooled.
        strands: The strands that are read; vectors of two strands are averaged.
        progress: See `stripedhyena2.progress`.
    """

    model: StripedHyena2
    layers: Mapping[str, int]
    pooling: Pooling
    strands: Sequence[Strand]
    progress: Progress = ignore_progress

    def pool(self, name: str, tag: bytes, bases: bytes, rows: Sequence[Spans]) -> dict[str, Tensor]:
        """Vectors [R, D] of each layer, pooled over parts of a sequence, as `pool_positions`."""
        return pool_positions(
            self.model,
            bases,
            self.layers,
            rows,
            self.pooling,
            self.strands,
            name=name,
            context=tag,
            progress=self.progress,
        )

    def keep(self, name: str, tag: bytes, bases: bytes, kept: Mapping[str, Kept]) -> None:
        """Store the vectors of all positions of a sequence, as `keep_positions`.

        Raises:
            UserError: They cannot be written.
        """
        stores = {layer: _OnDisk(kept[layer]) for layer in self.layers}
        keep_positions(
            self.model,
            bases,
            stores,
            self.strands,
            name=name,
            context=tag,
            progress=self.progress,
        )


@dataclass(frozen=True)
class _OnDisk:
    """A `PositionStore` of fp32 numbers on disk."""

    kept: Kept

    def write(self, start: int, x_LD: Tensor) -> None:
        self.kept.write(start, x_LD.float().numpy())

    def read(self, start: int, count: int) -> Tensor:
        return torch.from_numpy(self.kept.read(start, count))
