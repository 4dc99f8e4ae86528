"""Intervals of contigs, 0-based and half-open everywhere in Python."""

from dataclasses import dataclass

ENDLESS = 1 << 62  # end of an interval that extends to the end of its contig; the largest end


@dataclass(frozen=True)
class Interval:
    """Bases `start` to `end` of contig `name`, 0-based and half-open.

    Raises:
        ValueError: `start` is negative, or `end` is before it or beyond `ENDLESS`.
    """

    name: str
    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= ENDLESS:
            raise ValueError(f"{self}: needs 0 <= start <= end <= 2**62")

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.name}:{self.start}-{self.end}"
