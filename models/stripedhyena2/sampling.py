"""From logits to the next token, and from a prompt to a sequence.

B batch, L prompt length, N new tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stripedhyena2.model import StripedHyena2


@dataclass(frozen=True)
class Sampler:
    """How a token is drawn: of the `top_k` likeliest, softened, of the `top_p` likeliest.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_k: Only so many of the likeliest tokens; 0 means all, 1 is greedy.
        top_p: Only the smallest set of likeliest tokens that holds this probability; 1 means all.
        alphabet: Token ids that may be drawn; None means all.
    """

    temperature: float = 1.0
    top_k: int = 4
    top_p: float = 1.0
    alphabet: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature} must not be negative")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k} must not be negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn at random."""
        return self.temperature == 0 or self.top_k == 1

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """The distribution tokens are drawn from, [B, V]."""
        logits = self._allowed(logits_BV)
        if self.greedy:
            return torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)
        if 0 < self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = torch.softmax(logits / self.temperature, dim=1)
        if self.top_p < 1:
            ascending, order = probabilities.sort(dim=1)
            # A token goes when it and all less likely ones hold no more than 1 - top_p.
            dropped = ascending.cumsum(1) <= 1 - self.top_p
            probabilities = probabilities.masked_fill(dropped.scatter(1, order, dropped), 0)
            probabilities = probabilities / probabilities.sum(1, keepdim=True)
        return probabilities

    def draw(self, logits_BV: Tensor, generator: torch.Generator) -> Tensor:
        """One token id for each row, [B]."""
        if self.greedy:
            return self._allowed(logits_BV).argmax(1)
        # Drawn on the CPU, so that the same seed gives the same sequence wherever the model runs.
        probabilities = self.probabilities(logits_BV).cpu()
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        return drawn[:, 0].to(logits_BV.device)

    def _allowed(self, logits_BV: Tensor) -> Tensor:
        if self.alphabet is None:
            return logits_BV
        allowed = torch.full_like(logits_BV, -torch.inf)
        ids = torch.tensor(self.alphabet, device=logits_BV.device)
        return allowed.index_copy(1, ids, logits_BV.index_select(1, ids))


PREFILL_CHUNK = 8192  # prompt tokens a forward pass: bounds memory, changes no result


@torch.no_grad()
def generate(
    model: StripedHyena2,
    prompt_BL: Tensor,
    num_tokens: int,
    sampler: Sampler,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Continue prompts of equal length, a token at a time.

    Args:
        model: The model, on the device of the prompt.
        prompt_BL: int64 token ids; L is at least 1.
        num_tokens: How many to draw for each sequence.
        sampler: How to draw them.
        seed: Of the random draws.

    Yields:
        The ids drawn, [B], and their log-probabilities in nats under the raw logits, [B].

    Raises:
        ValueError: The prompt is empty.
        FloatingPointError: The logits are not finite.
    """
    batch, length = prompt_BL.shape
    if length == 0:
        raise ValueError("the prompt is empty; give at least one base")
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(batch)
    for start in range(0, length, PREFILL_CHUNK):
        logits_BV = model(prompt_BL[:, start : start + PREFILL_CHUNK], cache=cache)[:, -1]
    for step in range(num_tokens):
        if not torch.isfinite(logits_BV).all():
            raise FloatingPointError(f"the logits of token {cache.position} are not finite")
        ids_B = sampler.draw(logits_BV, generator)
        yield ids_B, torch.log_softmax(logits_BV, 1).gather(1, ids_B[:, None])[:, 0]
        if step + 1 < num_tokens:
            logits_BV = model(ids_B[:, None], cache=cache)[:, -1]
