"""Exchanges between ranks as linear maps: each is begun, ends later, and has an adjoint.

An exchange is split in two autograd nodes, `_Post` and `_Wait`. What is written between them runs
while the rows travel; going back, the adjoint is begun where the forward pass waited and awaited
where it was begun, so what ran meanwhile going forward runs meanwhile going back.

Every rank of the group must call the same exchanges in the same order, and use what they return:
a rank that does not would not begin the adjoint, and the others would wait for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Landing = Callable[[], Tensor]


class Exchange(ABC):
    """A linear map of what all ranks hold to what all ranks hold."""

    @abstractmethod
    def begin(self, x: Tensor) -> Landing:
        """Send this rank's part on its way; the landing waits and returns what came."""

    @property
    @abstractmethod
    def adjoint(self) -> "Exchange":
        """The map that carries gradients back."""


@dataclass(frozen=True)
class Piece:
    """Rows that travel: `count` rows from `source_row` of one rank to `target_row` of another."""

    source: int
    source_row: int
    target: int
    target_row: int
    count: int

    @property
    def back(self) -> "Piece":
        """The same rows on their way back."""
        return Piece(self.target, self.target_row, self.source, self.source_row, self.count)


@dataclass(frozen=True)
class Route(Exchange):
    """Rows (dim 1) sent point to point; rows that arrive at one place are added, others are zero.

    Attributes:
        pieces: All that travels, in an order all ranks share.
        num_sources: How many rows this rank gives.
        num_targets: How many it gets.
        rank: This process within the group.
        group: None for the world.
    """

    pieces: tuple[Piece, ...]
    num_sources: int
    num_targets: int
    rank: int
    group: dist.ProcessGroup | None

    def begin(self, x: Tensor) -> Landing:
        """Post the sends and receives of this rank in one batch."""
        arriving, operations = [], []
        for piece in self.pieces:
            if self.rank not in (piece.source, piece.target):
                continue
            rows = x[:, piece.source_row : piece.source_row + piece.count]
            if piece.source == self.rank != piece.target:
                # The operation keeps the copy alive until its work is done.
                operations.append(self._operation(dist.isend, rows.contiguous(), piece.target))
            elif piece.source != self.rank:
                rows = x.new_empty(x.shape[0], piece.count, *x.shape[2:])
                operations.append(self._operation(dist.irecv, rows, piece.source))
            if piece.target == self.rank:
                arriving.append((piece, rows))
        works = dist.batch_isend_irecv(operations) if operations else []

        def land() -> Tensor:
            for work in works:
                work.wait()
            operations.clear()
            y = x.new_zeros(x.shape[0], self.num_targets, *x.shape[2:])
            for piece, rows in arriving:
                y[:, piece.target_row : piece.target_row + piece.count] += rows
            return y

        return land

    def _operation(self, kind: Callable[..., Any], rows: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(kind, rows, group=self.group, group_peer=peer)

    @property
    def adjoint(self) -> "Route":
        """Every piece back to where it came from."""
        back = tuple(piece.back for piece in self.pieces)
        return Route(back, self.num_targets, self.num_sources, self.rank, self.group)


@dataclass(frozen=True)
class AllToAll(Exchange):
    """Every rank sends every rank its part of a flat tensor; parts stand in the order of ranks.

    Attributes:
        sent: Elements for each rank.
        received: Elements from each rank.
        group: None for the world.
    """

    sent: tuple[int, ...]
    received: tuple[int, ...]
    group: dist.ProcessGroup | None

    def begin(self, x: Tensor) -> Landing:
        """One collective."""
        x = x.contiguous()
        y = x.new_empty(sum(self.received))
        work = dist.all_to_all_single(
            y, x, list(self.received), list(self.sent), group=self.group, async_op=True
        )

        def land() -> Tensor:
            if work is not None:
                work.wait()
            return y

        return land

    @property
    def adjoint(self) -> "AllToAll":
        """The same with sent and received exchanged."""
        return AllToAll(self.received, self.sent, self.group)


class Flight:
    """An exchange on its way, differentiable."""

    def __init__(self, exchange: Exchange, x: Tensor) -> None:
        self._channel = _Channel(exchange)
        self._token: Tensor = _Post.apply(self._channel, x)
        self._arrived: Tensor | None = None

    def wait(self) -> Tensor:
        """What arrived; the second call returns the same tensor."""
        if self._arrived is None:
            self._arrived = _Wait.apply(self._channel, self._token)
        return self._arrived


class _Channel:
    """What the two nodes of a flight share; it holds no tensor of the graph, so nothing circles."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._landing: Landing | None = None

    def begin(self, exchange: Exchange, x: Tensor) -> None:
        self._landing = exchange.begin(x)

    def land(self) -> Tensor:
        assert self._landing is not None, "nothing was sent"
        landing, self._landing = self._landing, None
        return landing()


class _Post(torch.autograd.Function):
    """Begin an exchange. Returns an empty token that ties `_Wait` to it in the graph."""

    @staticmethod
    def forward(ctx: Any, channel: _Channel, x: Tensor) -> Tensor:
        ctx.channel = channel
        channel.begin(channel.exchange, x)
        return x.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtoken: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004 - it is empty
        return None, ctx.channel.land()


class _Wait(torch.autograd.Function):
    """End an exchange."""

    @staticmethod
    def forward(ctx: Any, channel: _Channel, token: Tensor) -> Tensor:  # noqa: ARG004 - it is empty
        ctx.channel = channel
        return channel.land()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor]:
        ctx.channel.begin(ctx.channel.exchange.adjoint, dy)
        return None, dy.new_empty(0)
