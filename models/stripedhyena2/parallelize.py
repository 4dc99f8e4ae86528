"""Context parallelism, applied to a model from outside: every mixer gets its exchange.

Each rank holds the positions that follow those of the preceding rank. Embedding, norms,
projections, MLPs and the head work position by position and need no change.

B batch, L tokens of this rank, T tokens of the sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor

from hyenakernels.parallel import Sharding
from stripedhyena2.config import ModelConfig
from stripedhyena2.mixer import Mixer
from stripedhyena2.model import StripedHyena2


@dataclass(frozen=True)
class Schemes:
    """The exchange scheme of each operator; `hyenakernels/parallel/README.md` compares them.

    An operator uses the field that its `Mixer.scheme` names, whose value is a key of its
    `Mixer.exchanges`.

    Attributes:
        fir: For Hyena-SE and Hyena-MR.
        modal: For Hyena-LI.
        attention: For attention.
    """

    fir: str = "overlapped"
    modal: str = "states"
    attention: str = "heads"

    def of(self, mixer: type[Mixer]) -> str:
        """The scheme of an operator; empty for one without exchanges."""
        return getattr(self, mixer.scheme) if mixer.scheme else ""


def check_schemes(config: ModelConfig, schemes: Schemes, count: int) -> None:
    """Refuse exchanges that `count` ranks cannot run for a model of this shape.

    Raises:
        ValueError: The message names the scheme and what to choose instead.
    """
    for mixer in config.mixers:
        mixer.check_exchange(config, schemes.of(mixer), count)


@dataclass
class SharedSequence:
    """Context parallelism: the ranks of a group hold contiguous parts of the same sequences.

    Attributes:
        group: The ranks, in the order of the sequence; None for all ranks.
        schemes: The exchange schemes.
    """

    group: dist.ProcessGroup | None
    schemes: Schemes = field(default_factory=Schemes)
    _sharding: Sharding | None = field(default=None, init=False)
    _mixers: list[Mixer] = field(default_factory=list, init=False)

    def put_on(self, model: StripedHyena2) -> None:
        """Wrap the mixers of `model`; they exchange after the first call of `expect` or `cut`."""
        self._mixers = model.mixers
        for mixer in self._mixers:
            parallel = mixer.exchanges.get(self.schemes.of(type(mixer)))
            if parallel is not None:
                mixer.wrap_operator(partial(self._either, parallel))

    def _either(
        self, parallel: Callable[..., Any], local: Callable[..., Any]
    ) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if self._sharding is None:
                return local(*args)
            return parallel(*args, sharding=self._sharding, group=self.group)

        return run

    @property
    def rank(self) -> int:
        """The rank within the group, which is the index of its part of a sequence."""
        return dist.get_rank(self.group)

    def expect(self, length: int) -> tuple[int, int]:
        """Prepare for sequences of `length` tokens, the same on all ranks.

        Returns:
            Start and end of this rank's part; the lengths of parts differ by at most one.

        Raises:
            ValueError: There are fewer tokens than ranks.
        """
        count = dist.get_world_size(self.group)
        if length < count:
            raise ValueError(f"{length} tokens cannot be shared by {count} ranks")
        self._sharding = Sharding.even(length, count)
        ((start, end),) = self._sharding.spans[self.rank]
        for mixer in self._mixers:
            mixer.first_position = start
        return start, end

    def dissolve(self) -> None:
        """Let the model process whole sequences again, each rank on its own."""
        self._sharding = None
        for mixer in self._mixers:
            mixer.first_position = 0

    def cut(self, x_BT: Tensor) -> Tensor:
        """This rank's part of whole sequences, [B, L]; prepares the model for it."""
        start, end = self.expect(x_BT.shape[1])
        return x_BT[:, start:end]
