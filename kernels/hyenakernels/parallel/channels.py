"""All-to-all between shards of the sequence and shards of the channels.

B batch, L rows of this shard, T rows of the sequence, R parts side by side (x2, x1, v), C channels
of a part, E channels of a part that one rank gets, N ranks.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hyenakernels.parallel.exchange import AllToAll, Flight
from hyenakernels.parallel.sharding import Place, Span, partition


class ToChannels:
    """Rows of all channels on their way to becoming all rows of some channels."""

    def __init__(
        self, x_BLRC: Tensor, slices: Sequence[Span], lengths: Sequence[int], place: Place
    ) -> None:
        """Send `slices[q]` of the channels to rank q; `lengths` are the rows of every rank."""
        batch, _, parts, _ = x_BLRC.shape
        width = slices[place.rank][1] - slices[place.rank][0]
        self.shapes = [(batch, length, parts, width) for length in lengths]
        self.flight = _fly([x_BLRC[..., start:end] for start, end in slices], self.shapes, place)

    def wait(self) -> Tensor:
        """The whole sequence of this rank's channels, [B, T, R, E]."""
        return torch.cat(_arrived(self.flight, self.shapes), dim=1)


class ToSequence:
    """All rows of some channels on their way back."""

    def __init__(
        self, y_BTRE: Tensor, slices: Sequence[Span], lengths: Sequence[int], place: Place
    ) -> None:
        """Send `lengths[q]` rows to rank q; `slices` are the channels that every rank holds."""
        batch, _, parts, _ = y_BTRE.shape
        self.shapes = [(batch, lengths[place.rank], parts, end - start) for start, end in slices]
        self.flight = _fly(torch.split(y_BTRE, list(lengths), dim=1), self.shapes, place)

    def wait(self) -> list[Tensor]:
        """This rank's rows, [B, L, R, E] from each rank."""
        return _arrived(self.flight, self.shapes)


Shape = tuple[int, int, int, int]


def _fly(parts: Sequence[Tensor], shapes: Sequence[Shape], place: Place) -> Flight:
    sent = tuple(part.numel() for part in parts)
    received = tuple(torch.Size(shape).numel() for shape in shapes)
    flat = torch.cat([part.reshape(-1) for part in parts])
    return Flight(AllToAll(sent, received, place.group), flat)


def _arrived(flight: Flight, shapes: Sequence[Shape]) -> list[Tensor]:
    parts = torch.split(flight.wait(), [torch.Size(shape).numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


Mix = Callable[[Span, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def mix_channels(
    mix: Mix,
    z_BLC: Tensor,
    z_past_BFC: Tensor,
    past_BPD: Tensor,
    place: Place,
    *,
    unit: int,
    num_chunks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run `mix` over the whole sequence, each rank on its channels, in chunks of channels.

    While a chunk is mixed, the next is on its way here and the one before on its way back.

    Args:
        mix: A local operator for a span of channels, from z, its past and the inner past as rows to
            y and both pasts; everything as wide as the span.
        z_BLC: [x2 | x1 | v].
        z_past_BFC: The featurizer's past, on the first rank.
        past_BPD: The inner past as rows, on the first rank.
        place: This process.
        unit: Neighbouring channels that must stay together.
        num_chunks: In how many chunks each rank's channels go.

    Returns:
        y [B, L, D], and on the last rank both pasts; elsewhere they have no rows.

    Raises:
        ValueError: There are fewer units than ranks times chunks.
    """
    width = z_BLC.shape[2] // 3
    if width // unit < place.count * num_chunks:
        raise ValueError(
            f"{width} channels in units of {unit} cannot be cut into {num_chunks} chunks "
            f"for each of {place.count} ranks"
        )
    rounds = _rounds(width // unit, unit, place.count, num_chunks)
    num_pasts = (z_past_BFC.shape[1], past_BPD.shape[1])
    first = [_only_at(0, rows, place) for rows in num_pasts]
    last = [_only_at(place.count - 1, rows, place) for rows in num_pasts]
    if place.rank > 0:
        z_past_BFC, past_BPD = z_past_BFC[:, :0], past_BPD[:, :0]
    lengths_in = (place.lengths, *first)
    inputs = (_thirds(z_BLC), _thirds(z_past_BFC), past_BPD[:, :, None])

    def send(slices: tuple[Span, ...]) -> list[ToChannels]:
        return [
            ToChannels(x, slices, lengths, place)
            for x, lengths in zip(inputs, lengths_in, strict=True)
        ]

    coming, going = send(rounds[0]), []
    for index, slices in enumerate(rounds):
        arrived = [flight.wait() for flight in coming]
        if index + 1 < num_chunks:
            coming = send(rounds[index + 1])
        z, z_past, past = (x.flatten(2) for x in arrived)
        mixed = mix(slices[place.rank], z, z_past, past)
        outputs = (mixed[0][:, :, None], _thirds(mixed[1]), mixed[2][:, :, None])
        lengths_out = (place.lengths, *last)
        going.append(
            [
                ToSequence(x, slices, lengths, place)
                for x, lengths in zip(outputs, lengths_out, strict=True)
            ]
        )
    y, z_past, past = (_joined([flights[i] for flights in going]) for i in range(3))
    return y, z_past, past


def _thirds(z_BTC: Tensor) -> Tensor:
    """Projections as [B, T, 3, D]."""
    return torch.unflatten(z_BTC, 2, (3, -1))


def _joined(flights: Sequence[ToSequence]) -> Tensor:
    """All channels in their order: rank by rank, and of each rank chunk by chunk."""
    chunks = [flight.wait() for flight in flights]
    return torch.cat(
        [part for of_rank in zip(*chunks, strict=True) for part in of_rank], 3
    ).flatten(2)


def _only_at(rank: int, rows: int, place: Place) -> list[int]:
    return [rows if other == rank else 0 for other in range(place.count)]


def _rounds(num_units: int, unit: int, count: int, num_chunks: int) -> list[tuple[Span, ...]]:
    """For each chunk the span of channels of every rank."""
    spans = [
        [
            ((first + start) * unit, (first + end) * unit)
            for start, end in partition(last - first, num_chunks)
        ]
        for first, last in partition(num_units, count)
    ]
    return list(zip(*spans, strict=True))
