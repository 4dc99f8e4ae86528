"""One sequence on several ranks, put on a model from outside: every mixer gets its exchange.

Each rank holds the positions that follow those of the rank before it. Embedding, norms,
projections, MLPs and the head compute one position at a time and stay as they are.

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
    """How the operators exchange; `hyenakernels/parallel/README.md` compares the schemes.

    Every operator takes the field that its `Mixer.scheme` names, a key of its `Mixer.exchanges`.

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
    """Refuse exchanges that `count` ranks cannot make for a model of this shape.

    Raises:
        ValueError: The message names the scheme and what to choose instead.
    """
    for mixer in config.mixers:
        mixer.check_exchange(config, schemes.of(mixer), count)


@dataclass
class SharedSequence:
    """The ranks of a group hold neighbouring parts of the same sequences.

    Attributes:
        group: The ranks, in the order of the sequence; None for the world.
        schemes: How they exchange.
    """

    group: dist.ProcessGroup | None
    schemes: Schemes = field(default_factory=Schemes)
    _sharding: Sharding | None = field(default=None, init=False)
    _mixers: list[Mixer] = field(default_factory=list, init=False)

    def put_on(self, model: StripedHyena2) -> None:
        """Let the mixers of `model` exchange, from the first `expect` or `cut` on."""
        self._mixers = model.mixers
        for mixer in self._mixers:
            together = mixer.exchanges.get(self.schemes.of(type(mixer)))
            if together is not None:
                mixer.wrap_operator(partial(self._either, together))

    def _either(
        self, together: Callable[..., Any], alone: Callable[..., Any]
    ) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if self._sharding is None:
                return alone(*args)
            return together(*args, sharding=self._sharding, group=self.group)

        return run

    @property
    def rank(self) -> int:
        """The index of the part of a sequence that this rank holds."""
        return dist.get_rank(self.group)

    def expect(self, length: int) -> tuple[int, int]:
        """Prepare for sequences of `length` tokens, the same on all ranks.

        Returns:
            Start and end of this rank's part; parts differ by at most one token.

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
        """Let the model take whole sequences again, on each rank by itself."""
        self._sharding = None
        for mixer in self._mixers:
            mixer.first_position = 0

    def cut(self, x_BT: Tensor) -> Tensor:
        """This rank's part of whole sequences, [B, L]; the model is prepared for it."""
        start, end = self.expect(x_BT.shape[1])
        return x_BT[:, start:end]
