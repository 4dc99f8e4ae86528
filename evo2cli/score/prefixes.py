"""Log-likelihoods of the windows of alleles; what they have in common is computed once.

Nothing but the window itself decides its number: the letters are always cut at the same places,
whether or not the first of them are still at hand. So no score depends on its neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from evo2cli.genome.windows import Window
from stripedhyena2 import StripedHyena2
from stripedhyena2.scoring import ScoringState

Extend = Callable[[ScoringState, bytes], ScoringState]


class WindowScorer(ABC):
    """Sums of the log-probabilities of windows, the first base left out, in nats.

    Args:
        model: What scores.
        extend: `ScoringState.extend`, or what only counts.

    Attributes:
        num_bases: So many bases ran through the model.
    """

    def __init__(self, model: StripedHyena2, extend: Extend = ScoringState.extend) -> None:
        self._model, self._extend = model, extend
        self.num_bases = 0

    @abstractmethod
    def reference(self, window: Window) -> float:
        """The total of a window as the genome has it."""

    @abstractmethod
    def alternate(self, window: Window) -> float:
        """The total of a window with another allele applied."""

    def _proceed(self, so_far: ScoringState, bases: bytes) -> ScoringState:
        self.num_bases += len(bases)
        return self._extend(so_far, bases)


class CentredScorer(WindowScorer):
    """For windows of their own: all alleles of a site share what stands before them."""

    def __init__(self, model: StripedHyena2, extend: Extend = ScoringState.extend) -> None:
        super().__init__(model, extend)
        self._before = b""
        self._shared = ScoringState.start(model)
        self._totals: dict[bytes, float] = {}

    def reference(self, window: Window) -> float:
        """As `WindowScorer`."""
        if window.before != self._before:
            self._shared = self._proceed(ScoringState.start(self._model), window.before)
            self._before, self._totals = window.before, {}
        rest = window.allele + window.after
        if rest not in self._totals:
            self._totals[rest] = self._proceed(self._shared, rest).logprob
        return self._totals[rest]

    alternate = reference


class AnchoredScorer(WindowScorer):
    """For windows that neighbours share: the genome runs through once, and each allele's rest.

    The genome is cut every `step` bases, and once more before each site.

    Args:
        model: What scores.
        step: Bases from cut to cut.
        extend: As `WindowScorer`.
    """

    def __init__(
        self, model: StripedHyena2, step: int, extend: Extend = ScoringState.extend
    ) -> None:
        super().__init__(model, extend)
        self._step = step
        self._letters = b""  # of the window that the chain runs along
        self._chain = [ScoringState.start(model)]  # before each cut
        self._site: tuple[bytes, ScoringState] | None = None
        self._totals: dict[bytes, float] = {}

    def reference(self, window: Window) -> float:
        """As `WindowScorer`."""
        letters = window.sequence
        if letters not in self._totals:
            whole = len(letters) // self._step
            self._totals[letters] = self._continued(letters, whole).logprob
        return self._totals[letters]

    def alternate(self, window: Window) -> float:
        """As `WindowScorer`."""
        if self._site is None or self._site[0] != window.before:
            before = self._continued(window.before, len(window.before) // self._step)
            self._site = (window.before, before)
        return self._proceed(self._site[1], window.allele + window.after).logprob

    def _continued(self, letters: bytes, cut: int) -> ScoringState:
        """After all of `letters`: along the chain up to a cut, and the rest in one go."""
        at = cut * self._step
        shared = self._letters[:at]
        if letters[: len(shared)] != shared:
            self._letters, self._chain, self._totals = b"", [ScoringState.start(self._model)], {}
        while len(self._chain) <= cut:
            start = (len(self._chain) - 1) * self._step
            piece = letters[start : start + self._step]
            self._chain.append(self._proceed(self._chain[-1], piece))
            self._chain = _sharing_keys(self._chain)
            self._letters = letters[: start + self._step]
        before = self._chain[cut]
        return self._proceed(before, letters[at:]) if at < len(letters) else before


def _sharing_keys(chain: list[ScoringState]) -> list[ScoringState]:
    """The same, with the keys and values of all as views of the last one's: they begin alike."""
    longest = chain[-1].cache.pasts

    def shared(so_far: ScoringState) -> ScoringState:
        pasts = [
            past.sharing(last) if past and last else past
            for past, last in zip(so_far.cache.pasts, longest, strict=True)
        ]
        return replace(so_far, cache=replace(so_far.cache, pasts=pasts))

    return [shared(so_far) for so_far in chain]
