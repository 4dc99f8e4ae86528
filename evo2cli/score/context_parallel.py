"""Context parallelism: several ranks score a sequence together, each computing a part of it.

Rank 0 runs the command as a single process would and calls `logprob`; the others run `work`.

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

_END = 0  # a length that stops the other ranks


class ContextParallelScorer:
    """Log-likelihoods by all ranks together, on parts whose lengths differ by at most one base.

    Args:
        model: The same model on all ranks. Between calls, each rank can use it alone.
        ranks: The ranks.
    """

    def __init__(self, model: StripedHyena2, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks
        attention = "heads" if model.config.num_heads >= ranks.world else "zigzag"
        self._shared = SharedSequence(ranks.neighbours, Schemes(attention=attention))
        self._shared.put_on(model)

    def logprob(
        self,
        bases: bytes,
        advance: Callable[[float], None] = ignore_progress,
        *,
        context: bytes = b"",
    ) -> float:
        """As `sequence_logprob`, called on rank 0 only."""
        letters = context + bases
        if len(letters) < 2 * self._ranks.world:
            return sequence_logprob(self._model, bases, advance, context=context)
        self._send(len(letters), len(context))
        ids_T = token_ids(self._model, letters)
        dist.broadcast(ids_T, 0)
        logprob = self._logprob(ids_T, len(context))
        advance(len(letters))
        return logprob

    def work(self) -> None:
        """Take part in every `logprob`, until rank 0 calls `stop`; called on all other ranks."""
        while (lengths := self._receive())[0] != _END:
            ids_T = torch.empty(lengths[0], dtype=torch.int64, device=self._ranks.device)
            dist.broadcast(ids_T, 0)
            self._logprob(ids_T, lengths[1])

    def stop(self) -> None:
        """End `work` on the other ranks."""
        self._send(_END, 0)

    def _send(self, length: int, context: int) -> None:
        dist.broadcast(torch.tensor([length, context], device=self._ranks.device), 0)

    def _receive(self) -> list[int]:
        lengths = torch.empty(2, dtype=torch.int64, device=self._ranks.device)
        dist.broadcast(lengths, 0)
        return [int(length) for length in lengths.tolist()]

    @torch.inference_mode()
    def _logprob(self, ids_T: Tensor, context: int) -> float:
        """The sum over all tokens except the first and those of the context."""
        start, end = self._shared.expect(len(ids_T))
        try:
            logits_LV = self._model(ids_T[None, start:end])[0]
        finally:
            self._shared.dissolve()
        targets_L = ids_T[start + 1 : end + 1]
        logprobs_LV = logits_LV[: len(targets_L)].log_softmax(dim=-1)
        of_rank = token_logprobs(logprobs_LV, targets_L)[max(context - start - 1, 0) :].sum()
        return float(self._ranks.sum(of_rank).item())
