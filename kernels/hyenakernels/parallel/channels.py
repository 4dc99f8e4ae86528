"""All-to-all between shards of the sequence and shards of the channels.

B batch, L rows of this shard, T rows of the sequence, R parts of a row (x2, x1, v), C channels of a
part, E channels of a part that one rank gets, N ranks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hyenakernels.filters import HyenaPast
from hyenakernels.parallel.exchange import AllToAll, Flight
from hyenakernels.parallel.sharding import LocalShard, Span, partition


class ToChannels:
    """An all-to-all in flight, from some rows of all channels to all rows of some channels."""

    def __init__(
        self, x_BLRC: Tensor, slices: Sequence[Span], lengths: Sequence[int], shard: LocalShard
    ) -> None:
        """Send the channels `slices[q]` to rank q; rank q has `lengths[q]` rows."""
        batch, _, parts, _ = x_BLRC.shape
        width = slices[shard.rank][1] - slices[shard.rank][0]
        self.shapes = [(batch, length, parts, width) for length in lengths]
        self.flight = _send([x_BLRC[..., start:end] for start, end in slices], self.shapes, shard)

    def wait(self) -> Tensor:
        """The whole sequence of this rank's channels, [B, T, R, E]."""
        return torch.cat(_received(self.flight, self.shapes), dim=1)


class ToSequence:
    """The inverse all-to-all, from all rows of some channels to some rows of all channels."""

    def __init__(
        self, y_BTRE: Tensor, slices: Sequence[Span], lengths: Sequence[int], shard: LocalShard
    ) -> None:
        """Send `lengths[q]` rows to rank q; rank q has the channels `slices[q]`."""
        batch, _, parts, _ = y_BTRE.shape
        self.shapes = [(batch, lengths[shard.rank], parts, end - start) for start, end in slices]
        self.flight = _send(torch.split(y_BTRE, list(lengths), dim=1), self.shapes, shard)

    def wait(self) -> list[Tensor]:
        """This rank's rows, [B, L, R, E] from each rank."""
        return _received(self.flight, self.shapes)


Shape = tuple[int, int, int, int]


def _send(parts: Sequence[Tensor], shapes: Sequence[Shape], shard: LocalShard) -> Flight:
    sent = tuple(part.numel() for part in parts)
    received = tuple(torch.Size(shape).numel() for shape in shapes)
    flat = torch.cat([part.reshape(-1) for part in parts])
    return Flight(AllToAll(sent, received, shard.group), flat)


def _received(flight: Flight, shapes: Sequence[Shape]) -> list[Tensor]:
    parts = torch.split(flight.wait(), [torch.Size(shape).numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


Mix = Callable[[Span, Tensor, HyenaPast], tuple[Tensor, HyenaPast]]


def mix_channels(
    mix: Mix, z_BLC: Tensor, past: HyenaPast, shard: LocalShard, *, unit: int, num_chunks: int
) -> tuple[Tensor, HyenaPast]:
    """Run `mix` over the whole sequence, each rank on its own channels, in chunks of channels.

    Exchange and computation are pipelined: while a chunk is computed, the next one is received and
    the previous one is sent back.

    Args:
        mix: The local operator for a span of channels: takes the span, and z and past of these
            channels; returns y and the new past. Channels are the last dimension of all of them.
        z_BLC: [x2 | x1 | v].
        past: The past of the sequence, read on the first rank only.
        shard: The shard of this process.
        unit: The number of neighbouring channels that must stay on the same rank.
        num_chunks: The number of chunks into which each rank's channels are cut.

    Returns:
        y [B, L, D], and the new past on the last rank; on the others it has no rows.

    Raises:
        ValueError: There are fewer units than ranks times chunks.
    """
    width = z_BLC.shape[2] // 3
    if width // unit < shard.num_ranks * num_chunks:
        raise ValueError(
            f"{width} channels in units of {unit} cannot be cut into {num_chunks} chunks "
            f"for each of {shard.num_ranks} ranks"
        )
    rounds = _rounds(width // unit, unit, shard.num_ranks, num_chunks)
    num_rows = past.featurizer_BPC.shape[1], past.inner.shape[1]
    on_first_rank = [_only_on(0, rows, shard) for rows in num_rows]
    on_last_rank = [_only_on(shard.num_ranks - 1, rows, shard) for rows in num_rows]
    if shard.rank > 0:
        past = HyenaPast(past.featurizer_BPC[:, :0], past.inner[:, :0])
    inputs = (_thirds(z_BLC), _thirds(past.featurizer_BPC), past.inner[:, :, None])

    def send(slices: tuple[Span, ...]) -> list[ToChannels]:
        lengths = (shard.lengths, *on_first_rank)
        return [ToChannels(x, slices, rows, shard) for x, rows in zip(inputs, lengths, strict=True)]

    incoming, outgoing = send(rounds[0]), []
    for index, slices in enumerate(rounds):
        received = [flight.wait() for flight in incoming]
        if index + 1 < num_chunks:
            incoming = send(rounds[index + 1])
        z, z_past, inner = (x.flatten(2) for x in received)
        y, after = mix(slices[shard.rank], z, HyenaPast(z_past, inner))
        outputs = (y[:, :, None], _thirds(after.featurizer_BPC), after.inner[:, :, None])
        lengths = (shard.lengths, *on_last_rank)
        outgoing.append(
            [ToSequence(x, slices, rows, shard) for x, rows in zip(outputs, lengths, strict=True)]
        )
    y, z_past, inner = (_joined(flights) for flights in zip(*outgoing, strict=True))
    return y, HyenaPast(z_past, inner)


def _thirds(z_BTC: Tensor) -> Tensor:
    """Projections as [B, T, 3, D]."""
    return torch.unflatten(z_BTC, 2, (3, -1))


def _joined(flights: Sequence[ToSequence]) -> Tensor:
    """All channels in order: rank by rank, and for each rank chunk by chunk."""
    chunks = [flight.wait() for flight in flights]
    return torch.cat(
        [part for of_rank in zip(*chunks, strict=True) for part in of_rank], 3
    ).flatten(2)


def _only_on(rank: int, rows: int, shard: LocalShard) -> list[int]:
    """The number of rows of each rank if `rank` has all of them."""
    return [rows if other == rank else 0 for other in range(shard.num_ranks)]


def _rounds(num_units: int, unit: int, num_ranks: int, num_chunks: int) -> list[tuple[Span, ...]]:
    """For each chunk, the span of channels of every rank."""
    spans = [
        [
            ((first + start) * unit, (first + end) * unit)
            for start, end in partition(last - first, num_chunks)
        ]
        for first, last in partition(num_units, num_ranks)
    ]
    return list(zip(*spans, strict=True))
