"""Assign sequences to splits by a hash of their content, so that copies share a split."""

import hashlib
from dataclasses import dataclass

from evo2cli.errors import UserError
from evo2cli.genome.alphabet import canonical_pieces

SPLITS = ("train", "valid", "test")
_HASH_RANGE = float(2**64)


def content_sha256(sequence: bytes) -> str:
    """A hash of a DNA sequence that ignores case and strand."""
    digest = hashlib.sha256()
    for piece in canonical_pieces(sequence):
        digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True)
class SplitRule:
    """The fractions of the validation and test splits; the rest is for training.

    Attributes:
        valid_fraction: 0 to 1.
        test_fraction: 0 to 1.

    Raises:
        UserError: A fraction is negative, or their sum is above 1.
    """

    valid_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        both = self.valid_fraction, self.test_fraction
        if not (min(both) >= 0 and sum(both) <= 1):
            raise UserError(
                f"--valid-fraction {self.valid_fraction} and --test-fraction {self.test_fraction} "
                "must be at least 0, and their sum at most 1"
            )

    def split(self, sha256: str) -> str:
        """The split of a sequence, by its `content_sha256`; the same on every machine."""
        point = int(sha256[:16], 16) / _HASH_RANGE
        if point < self.valid_fraction:
            return "valid"
        return "test" if point < self.valid_fraction + self.test_fraction else "train"
