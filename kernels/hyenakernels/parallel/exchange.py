"""Exchanges between ranks as linear maps: asynchronous, and each with an adjoint.

An exchange is split into two autograd nodes, `_Post` and `_Wait`. Operations called between them
overlap with the transfer. In the backward pass the adjoint is posted where the forward pass waited
and awaited where it was posted, so the gradients of the same operations overlap with it again.

Every rank of the group must call the same exchanges in the same order, and use their results in the
loss: a rank that does not would never post the adjoint, and the others would wait forever.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

WaitFunction = Callable[[], Tensor]


class Exchange(ABC):
    """A collective or point-to-point transfer: a linear map of the tensors of all ranks."""

    @abstractmethod
    def begin(self, x: Tensor) -> WaitFunction:
        """Post the transfer; the returned function waits and returns what this rank receives."""

    @property
    @abstractmethod
    def adjoint(self) -> "Exchange":
        """The exchange that sends gradients back."""


@dataclass(frozen=True)
class Piece:
    """`count` rows to send, from `source_row` of one rank to `target_row` of another."""

    source: int
    source_row: int
    target: int
    target_row: int
    count: int

    @property
    def back(self) -> "Piece":
        """The same rows, sent back."""
        return Piece(self.target, self.target_row, self.source, self.source_row, self.count)


@dataclass(frozen=True)
class Route(Exchange):
    """Point-to-point transfers of rows (dim 1).

    Rows received for the same target row are added; target rows that receive none are zero.

    Attributes:
        pieces: The rows to send between all ranks, in the same order on all of them.
        num_sources: The number of rows of this rank before the exchange.
        num_targets: Its number of rows after the exchange.
        rank: This process's rank within the group.
        group: The process group; None for all ranks.
    """

    pieces: tuple[Piece, ...]
    num_sources: int
    num_targets: int
    rank: int
    group: dist.ProcessGroup | None

    def begin(self, x: Tensor) -> WaitFunction:
        """Post the sends and receives of this rank in one batch."""
        arriving, operations = [], []
        for piece in self.pieces:
            if self.rank not in (piece.source, piece.target):
                continue
            rows = x[:, piece.source_row : piece.source_row + piece.count]
            if piece.source == self.rank != piece.target:
                # The operation keeps the copy alive until it is sent.
                operations.append(self._operation(dist.isend, rows.contiguous(), piece.target))
            elif piece.source != self.rank:
                rows = x.new_empty(x.shape[0], piece.count, *x.shape[2:])
                operations.append(self._operation(dist.irecv, rows, piece.source))
            if piece.target == self.rank:
                arriving.append((piece, rows))
        works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> Tensor:
            for work in works:
                work.wait()
            operations.clear()
            y = x.new_zeros(x.shape[0], self.num_targets, *x.shape[2:])
            for piece, rows in arriving:
                y[:, piece.target_row : piece.target_row + piece.count] += rows
            return y

        return wait

    def _operation(self, kind: Callable[..., Any], rows: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(kind, rows, group=self.group, group_peer=peer)

    @property
    def adjoint(self) -> "Route":
        """Every piece is sent back to its source."""
        back = tuple(piece.back for piece in self.pieces)
        return Route(back, self.num_targets, self.num_sources, self.rank, self.group)


@dataclass(frozen=True)
class AllToAll(Exchange):
    """All-to-all of a flat tensor, whose parts are in the order of ranks.

    Attributes:
        sent: The number of elements for each rank.
        received: The number of elements from each rank.
        group: The process group; None for all ranks.
    """

    sent: tuple[int, ...]
    received: tuple[int, ...]
    group: dist.ProcessGroup | None

    def begin(self, x: Tensor) -> WaitFunction:
        """Post one collective."""
        x = x.contiguous()
        y = x.new_empty(sum(self.received))
        work = dist.all_to_all_single(
            y, x, list(self.received), list(self.sent), group=self.group, async_op=True
        )

        def wait() -> Tensor:
            if work is not None:
                work.wait()
            return y

        return wait

    @property
    def adjoint(self) -> "AllToAll":
        """The same exchange with `sent` and `received` swapped."""
        return AllToAll(self.received, self.sent, self.group)


class Flight:
    """An exchange in flight, differentiable."""

    def __init__(self, exchange: Exchange, x: Tensor) -> None:
        self._channel = _Channel(exchange)
        self._token: Tensor = _Post.apply(self._channel, x)
        self._arrived: Tensor | None = None

    def wait(self) -> Tensor:
        """The received tensor; later calls return the same one."""
        if self._arrived is None:
            self._arrived = _Wait.apply(self._channel, self._token)
        return self._arrived


class _Channel:
    """State shared by the two nodes of a flight; no tensor of the graph, so no reference cycle."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._wait_function: WaitFunction | None = None

    def begin(self, exchange: Exchange, x: Tensor) -> None:
        self._wait_function = exchange.begin(x)

    def wait(self) -> Tensor:
        assert self._wait_function is not None, "no exchange was started"
        wait, self._wait_function = self._wait_function, None
        return wait()


class _Post(torch.autograd.Function):
    """Post an exchange; returns an empty token that connects `_Wait` to it in the graph."""

    @staticmethod
    def forward(ctx: Any, channel: _Channel, x: Tensor) -> Tensor:
        ctx.channel = channel
        channel.begin(channel.exchange, x)
        return x.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtoken: Tensor) -> tuple[None, Tensor]:  # noqa: ARG004 - it is empty
        return None, ctx.channel.wait()


class _Wait(torch.autograd.Function):
    """Wait for an exchange."""

    @staticmethod
    def forward(ctx: Any, channel: _Channel, token: Tensor) -> Tensor:  # noqa: ARG004 - it is empty
        ctx.channel = channel
        return channel.wait()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor]:
        ctx.channel.begin(ctx.channel.exchange.adjoint, dy)
        return None, dy.new_empty(0)
