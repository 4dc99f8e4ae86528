"""One sequence over several ranks, put on a model from outside: every mixer gets its exchange.

Each rank holds the rows that follow those of the rank before it. Embedding, norms, projections,
MLPs and the head see one row at a time and stay as they are.

B batch, L tokens of this rank, T tokens of the sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import Tensor

from hyenakernels import parallel
from hyenakernels.parallel import Sharding
from stripedhyena2.config import ModelConfig
from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators import Attention, Hyena, HyenaLI

CHUNKS = 4  # of the channels that a rank gets, in pipelined all-to-all

FIR: dict[str, Callable[..., Any]] = {
    "halo": parallel.hyena_fir_halo,
    "overlapped": parallel.hyena_fir_overlapped,
    "all-to-all": parallel.hyena_fir_all_to_all,
    "pipelined": partial(parallel.hyena_fir_all_to_all, num_chunks=CHUNKS),
}
MODAL: dict[str, Callable[..., Any]] = {
    "states": parallel.hyena_modal_states,
    "all-to-all": parallel.hyena_modal_all_to_all,
    "pipelined": partial(parallel.hyena_modal_all_to_all, num_chunks=CHUNKS),
    "fft": parallel.hyena_modal_fft,
}
ATTENTION: dict[str, Callable[..., Any]] = {
    "heads": parallel.attention_all_to_all,
    "ring": parallel.attention_ring,
    "zigzag": parallel.attention_zigzag,
}


@dataclass(frozen=True)
class Schemes:
    """How each kind of mixer exchanges; `hyenakernels/parallel/README.md` compares them.

    Attributes:
        fir: A key of `FIR`, for Hyena-SE and -MR.
        modal: A key of `MODAL`, for Hyena-LI.
        attention: A key of `ATTENTION`.
    """

    fir: str = "overlapped"
    modal: str = "states"
    attention: str = "heads"


def check_schemes(config: ModelConfig, schemes: Schemes, count: int) -> None:
    """Refuse exchanges that `count` ranks cannot make for a model of this shape.

    Raises:
        ValueError: Says which, and what to choose instead.
    """
    parts = {"all-to-all": count, "pipelined": CHUNKS * count}
    if schemes.attention == "heads" and config.num_heads < count:
        raise ValueError(
            f'attention = "heads": {config.num_heads} heads for {count} ranks; use "zigzag"'
        )
    if config.num_filter_groups < parts.get(schemes.fir, 0):
        raise ValueError(
            f'fir = "{schemes.fir}": {config.num_filter_groups} filter groups for '
            f'{parts[schemes.fir]} parts; use "overlapped"'
        )
    if config.width < parts.get(schemes.modal, 0):
        raise ValueError(
            f'modal = "{schemes.modal}": {config.width} channels for {parts[schemes.modal]} parts; '
            'use "states"'
        )
    if schemes.modal == "fft" and count & (count - 1):
        raise ValueError(f'modal = "fft": {count} ranks are no power of two; use "states"')


@dataclass
class SharedSequence:
    """The ranks of a group hold neighbouring parts of the same sequences.

    Attributes:
        group: The ranks, in the order of the sequence; None for the world.
        schemes: What they exchange.
    """

    group: dist.ProcessGroup | None
    schemes: Schemes = Schemes()
    _sharding: Sharding | None = field(default=None, init=False)
    _attentions: list[Attention] = field(default_factory=list, init=False)

    def put_on(self, model: StripedHyena2) -> None:
        """Let the mixers of `model` exchange, from the first `expect` or `cut` on."""
        schemes = self.schemes
        for mixer in model.blocks.modules():
            if isinstance(mixer, Attention):
                self._attentions.append(mixer)
                mixer.attend = self._either(mixer.attend, ATTENTION[schemes.attention])
            elif isinstance(mixer, Hyena):
                operator = mixer.operator
                is_long = isinstance(operator, HyenaLI)
                op = MODAL[schemes.modal] if is_long else FIR[schemes.fir]
                operator.convolve = self._either(operator.convolve, op)

    def _either(
        self, alone: Callable[..., Any], together: Callable[..., Any]
    ) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if self._sharding is None:
                return alone(*args)
            return together(*args, sharding=self._sharding, group=self.group)

        return run

    @property
    def rank(self) -> int:
        """Which part of a sequence this rank holds."""
        return dist.get_rank(self.group)

    def expect(self, length: int) -> tuple[int, int]:
        """Make ready for sequences of `length` tokens, the same on all ranks.

        Returns:
            Start and end of this rank's part; parts differ by one token at most.

        Raises:
            ValueError: There are fewer tokens than ranks.
        """
        count = dist.get_world_size(self.group)
        if length < count:
            raise ValueError(f"{length} tokens cannot be shared by {count} ranks")
        self._sharding = Sharding.even(length, count)
        ((start, end),) = self._sharding.spans[self.rank]
        for attention in self._attentions:
            attention.first_position = start
        return start, end

    def dissolve(self) -> None:
        """Let the model take whole sequences again, on each rank by itself."""
        self._sharding = None
        for attention in self._attentions:
            attention.first_position = 0

    def cut(self, x_BT: Tensor) -> Tensor:
        """This rank's part of whole sequences, [B, L]; the model is made ready for it."""
        start, end = self.expect(x_BT.shape[1])
        return x_BT[:, start:end]
