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
from stripedhyena2.model import StripedHyena2
from stripedhyena2.operators import Attention, Hyena, HyenaLI

FIR: dict[str, Callable[..., Any]] = {
    "halo": parallel.hyena_fir_halo,
    "overlapped": parallel.hyena_fir_overlapped,
    "all-to-all": parallel.hyena_fir_all_to_all,
    "pipelined": partial(parallel.hyena_fir_all_to_all, num_chunks=4),
}
MODAL: dict[str, Callable[..., Any]] = {
    "states": parallel.hyena_modal_states,
    "all-to-all": parallel.hyena_modal_all_to_all,
    "pipelined": partial(parallel.hyena_modal_all_to_all, num_chunks=4),
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
        """Let the mixers of `model` exchange; from now on it takes what `cut` gives."""
        fir, modal, attend = (
            self._shared(op)
            for op in (
                FIR[self.schemes.fir],
                MODAL[self.schemes.modal],
                ATTENTION[self.schemes.attention],
            )
        )
        for mixer in model.blocks.modules():
            if isinstance(mixer, Attention):
                self._attentions.append(mixer)
                mixer.attend = attend
            elif isinstance(mixer, Hyena):
                operator = mixer.operator
                operator.convolve = modal if isinstance(operator, HyenaLI) else fir

    def _shared(self, op: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            return op(*args, sharding=self._sharding, group=self.group)

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

    def cut(self, x_BT: Tensor) -> Tensor:
        """This rank's part of whole sequences, [B, L]; the model is made ready for it."""
        start, end = self.expect(x_BT.shape[1])
        return x_BT[:, start:end]
