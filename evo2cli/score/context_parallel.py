"""A long sequence scored by several processes, each of which holds a part of it.

The first process runs the command as it would alone and asks for log-likelihoods; the others help.

T tokens of a sequence.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from evo2cli.training.ranks import Ranks
from stripedhyena2 import StripedHyena2
from stripedhyena2.parallelize import Schemes, SharedSequence
from stripedhyena2.progress import ignore_progress
from stripedhyena2.scoring import sequence_logprob, token_ids, token_logprobs

_END = 0  # a length that tells the helpers to stop


class SharedScorer:
    """Log-likelihoods by all ranks together, on parts whose lengths differ by at most one base.

    Args:
        model: The same model on all ranks. Between calls it computes alone, as before.
        ranks: The processes; the first one asks.
    """

    def __init__(self, model: StripedHyena2, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks
        attention = "heads" if model.config.num_heads >= ranks.world else "zigzag"
        self._shared = SharedSequence(ranks.neighbours, Schemes(attention=attention))
        self._shared.put_on(model)

    def total(
        self,
        bases: bytes,
        advance: Callable[[float], None] = ignore_progress,
        *,
        context: bytes = b"",
    ) -> float:
        """`sequence_logprob` of upper-case letters, for the first rank to call."""
        letters = context + bases
        if len(letters) < 2 * self._ranks.world:
            return sequence_logprob(self._model, bases, advance, context=context)
        self._send(len(letters), len(context))
        ids_T = token_ids(self._model, letters)
        dist.broadcast(ids_T, 0)
        found = self._logprob(ids_T, len(context))
        advance(len(letters))
        return found

    def help(self) -> None:
        """Help with every `total`, until the first rank calls `release`."""
        while (lengths := self._receive())[0] != _END:
            ids_T = torch.empty(lengths[0], dtype=torch.int64, device=self._ranks.device)
            dist.broadcast(ids_T, 0)
            self._logprob(ids_T, lengths[1])

    def release(self) -> None:
        """End `help` on the other ranks."""
        self._send(_END, 0)

    def _send(self, length: int, context: int) -> None:
        dist.broadcast(torch.tensor([length, context], device=self._ranks.device), 0)

    def _receive(self) -> list[int]:
        lengths = torch.empty(2, dtype=torch.int64, device=self._ranks.device)
        dist.broadcast(lengths, 0)
        return [int(length) for length in lengths.tolist()]

    @torch.inference_mode()
    def _logprob(self, ids_T: Tensor, context: int) -> float:
        """The sum over all tokens but the first and the `context` at the beginning."""
        start, end = self._shared.expect(len(ids_T))
        try:
            logits_LV = self._model(ids_T[None, start:end])[0]
        finally:
            self._shared.dissolve()
        targets_L = ids_T[start + 1 : end + 1]
        logprobs_LV = logits_LV[: len(targets_L)].log_softmax(dim=-1)
        own = token_logprobs(logprobs_LV, targets_L)[max(context - start - 1, 0) :].sum()
        return float(self._ranks.sum(own).item())
