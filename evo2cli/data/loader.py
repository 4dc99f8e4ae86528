"""Which windows of which sources make up step k: a function of the seed and k alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evo2cli.data.documents import Bytes, Documents
from evo2cli.training.recipe import Data

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Windows:
    """Windows of `length` predictions each, as stored; W windows.

    Attributes:
        tokens: Bytes, case kept, [W, length + 1].
        reverse: Whether to read a window as its reverse complement, [W].
        masked: Bytes not to be learned as targets because they belong to a tag, [W, length + 1];
            in the order of `tokens`, not yet turned.
    """

    tokens: Bytes
    reverse: Flags
    masked: Flags

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Windows":
        return Windows(self.tokens[rows], self.reverse[rows], self.masked[rows])

    def share(self, rank: int, world: int) -> "Windows":
        """Every `world`-th window from the `rank`-th on: all ranks together have each one once."""
        return self[rank::world]


class WindowLoader:
    """The training windows of every step of a run.

    Args:
        documents: The sources of `data`, opened, in their order.
        data: Weights, packing, strands and tags, as the recipe says.
        length: Predictions a window; a window holds one byte more.
        sequences: Windows a step, on all ranks together.
        seed: Decides phases, order and strands.

    Raises:
        ValueError: A source holds no window, or there are not as many documents as sources.
    """

    def __init__(
        self, documents: Sequence[Documents], data: Data, *, length: int, sequences: int, seed: int
    ) -> None:
        raise NotImplementedError

    @property
    def windows_per_epoch(self) -> int:
        """How many windows one pass over all sources has."""
        raise NotImplementedError

    def epochs(self, steps: int) -> tuple[float, ...]:
        """How often `steps` steps go through each source, in the order of the sources."""
        raise NotImplementedError

    def windows(self, step: int, rows: slice = slice(None)) -> Windows:
        """The windows of a step (0-based), or only some rows of them.

        Args:
            step: Any; no other step need have been read.
            rows: Of the step's `sequences` windows, e.g. those of one rank or one forward pass.

        Raises:
            UserError: A source proves damaged.
        """
        raise NotImplementedError


def fixed_windows(documents: Documents, data: Data, *, length: int, limit: int) -> Windows:
    """Up to `limit` windows spread evenly over a source, the same every time, none reversed.

    Returns:
        No windows when the source holds none.
    """
    raise NotImplementedError
