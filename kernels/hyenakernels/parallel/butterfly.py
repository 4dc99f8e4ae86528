"""The FFT of a sequence that is sharded over several ranks, by butterflies between pairs of ranks.

Decimation in frequency of T rows, where w(T) = exp(-2 pi i / T):

    X[2 k]     = sum over n < T / 2 of  (x[n] + x[n + T / 2])                       w(T / 2)^(n k)
    X[2 k + 1] = sum over n < T / 2 of  (x[n] - x[n + T / 2]) exp(-2 pi i n / T)    w(T / 2)^(n k)

Each half of the ranks continues with half of the frequencies. After log2 N rounds every rank holds
M rows, whose local FFT gives the frequencies of one residue class: X[N k + c], k = 0 .. M - 1.

B batch, M rows of a block, D channels, N ranks, T = N M rows in total.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hyenakernels.parallel.exchange import Flight, Piece, Route


@dataclass(frozen=True)
class Hypercube:
    """N ranks, a power of two, each with one block of M rows.

    Attributes:
        rank: This process's rank within the group.
        num_ranks: N.
        num_rows: M.
        group: The process group; None for all ranks.
    """

    rank: int
    num_ranks: int
    num_rows: int
    group: dist.ProcessGroup | None

    def __post_init__(self) -> None:
        if self.num_ranks & (self.num_ranks - 1):
            raise ValueError(
                "hyena_modal_fft needs a power of two as the number of ranks, the group has "
                f"{self.num_ranks}; hyena_modal_states takes any number"
            )

    @property
    def frequency_class(self) -> int:
        """c: the bit-reversed rank, since the first round decides the lowest bit of k."""
        bit_pairs = zip(self._halves, reversed(self._halves), strict=True)
        return sum(low for high, low in bit_pairs if self.rank & high)

    def transform(self, x_BMD: Tensor) -> Tensor:
        """X[N k + c], k = 0 .. M - 1, of the sequence, from this rank's block of complex rows."""
        for half in self._halves:
            x_BMD = self._butterfly(x_BMD, half)
            if self.rank & half:
                x_BMD = x_BMD * self._twiddles(half, x_BMD)
        frequencies_BMD: Tensor = torch.fft.fft(x_BMD, dim=1)
        return frequencies_BMD

    def inverse(self, frequencies_BMD: Tensor) -> Tensor:
        """The inverse of `transform`, round by round: this rank's block of complex rows."""
        x_BMD: Tensor = torch.fft.ifft(frequencies_BMD, dim=1)
        for half in reversed(self._halves):
            if self.rank & half:
                x_BMD = x_BMD * self._twiddles(half, x_BMD).conj()
            x_BMD = self._butterfly(x_BMD, half)
        return x_BMD / self.num_ranks

    @property
    def _halves(self) -> list[int]:
        """The distance in ranks between the two of a pair in each round: N / 2 .. 1."""
        return [self.num_ranks >> i for i in range(1, self.num_ranks.bit_length())]

    def _butterfly(self, x_BMD: Tensor, half: int) -> Tensor:
        """The sum of the pair's rows on its lower rank, their difference on the upper one."""
        pieces = tuple(
            Piece(rank, 0, rank ^ half, 0, self.num_rows) for rank in range(self.num_ranks)
        )
        route = Route(pieces, self.num_rows, self.num_rows, self.rank, self.group)
        # As real numbers, since not every backend sends complex ones.
        other_BMD = torch.view_as_complex(Flight(route, torch.view_as_real(x_BMD)).wait())
        return other_BMD - x_BMD if self.rank & half else other_BMD + x_BMD

    def _twiddles(self, half: int, like: Tensor) -> Tensor:
        first = (self.rank % half) * self.num_rows
        return phases(-math.pi / (half * self.num_rows), first, self.num_rows, like)


def phases(angle: float, first: int, count: int, like: Tensor) -> Tensor:
    """exp(i angle n) for n = first .. first + count - 1, complex rows [M, 1] like `like`."""
    # In fp64, because the angles of late rows are many times 2 pi.
    angles_M = angle * torch.arange(first, first + count, dtype=torch.float64, device=like.device)
    phases_M = torch.polar(torch.ones_like(angles_M), angles_M)
    return phases_M[:, None].to(like.dtype.to_complex())
