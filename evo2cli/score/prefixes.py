"""Log-likelihoods of the windows of alleles; prefixes that windows share are computed once.

The score of a window depends on the window alone, bit for bit: its bases are always computed in the
same chunks, whether or not the state after the first chunks is still cached.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from evo2cli.genome.windows import Window
from stripedhyena2 import StripedHyena2
from stripedhyena2.scoring import ScoringState

Extend = Callable[[ScoringState, bytes], ScoringState]


class WindowScorer(ABC):
    """Log-likelihoods of windows, in nats: the sum over all bases but the first.

    Args:
        model: Model in inference mode.
        extend: `ScoringState.extend`, or a function that only counts bases.

    Attributes:
        num_bases: Number of bases that ran through the model.
    """

    def __init__(self, model: StripedHyena2, extend: Extend = ScoringState.extend) -> None:
        self._model, self._extend = model, extend
        self.num_bases = 0

    @abstractmethod
    def before(self, bases: bytes) -> ScoringState:
        """The state after the bases before an allele, which all alleles of a site share."""

    def next_base(self, window: Window) -> float:
        """The log-probability of an allele of one base, given the bases before it, in nats."""
        next_V = self.before(window.before).next_V
        assert next_V is not None, "no base comes first"
        return next_V[window.allele[0]].double().item()

    @abstractmethod
    def reference(self, window: Window) -> float:
        """The log-likelihood of the window with the reference allele."""

    @abstractmethod
    def alternate(self, window: Window) -> float:
        """The log-likelihood of the window with an alternate allele."""

    def _read(self, state: ScoringState, bases: bytes) -> ScoringState:
        self.num_bases += len(bases)
        return self._extend(state, bases)


class CentredScorer(WindowScorer):
    """For centred windows: all alleles of a site share the bases before them."""

    def __init__(self, model: StripedHyena2, extend: Extend = ScoringState.extend) -> None:
        super().__init__(model, extend)
        self._before = b""
        self._shared = ScoringState.start(model)
        self._totals: dict[bytes, float] = {}

    def before(self, bases: bytes) -> ScoringState:
        """As in `WindowScorer`."""
        if bases != self._before:
            self._shared = self._read(ScoringState.start(self._model), bases)
            self._before, self._totals = bases, {}
        return self._shared

    def reference(self, window: Window) -> float:
        """As in `WindowScorer`."""
        shared = self.before(window.before)
        rest = window.allele + window.after
        if rest not in self._totals:
            self._totals[rest] = self._read(shared, rest).logprob
        return self._totals[rest]

    alternate = reference


class AnchoredScorer(WindowScorer):
    """For anchored windows, which neighbouring sites share.

    The reference window is read once, in chunks of `step` bases, and the state after each chunk is
    cached. A site starts at the last cached state before it, and each of its alleles then reads the
    rest of the window.

    Args:
        model: As in `WindowScorer`.
        step: Number of bases in a chunk.
        extend: As in `WindowScorer`.
    """

    def __init__(
        self, model: StripedHyena2, step: int, extend: Extend = ScoringState.extend
    ) -> None:
        super().__init__(model, extend)
        self._step = step
        self._letters = b""  # the prefix of a window that the cached states have read
        self._states = [ScoringState.start(model)]  # before the first chunk, and after each
        self._site: tuple[bytes, ScoringState] | None = None  # bases before an allele, and after
        self._totals: dict[bytes, float] = {}  # by reference window

    def reference(self, window: Window) -> float:
        """As in `WindowScorer`."""
        letters = window.sequence
        if letters not in self._totals:
            self._totals[letters] = self._read_prefix(letters).logprob
        return self._totals[letters]

    def alternate(self, window: Window) -> float:
        """As in `WindowScorer`."""
        return self._read(self.before(window.before), window.allele + window.after).logprob

    def before(self, bases: bytes) -> ScoringState:
        """As in `WindowScorer`."""
        if self._site is None or self._site[0] != bases:
            self._site = (bases, self._read_prefix(bases))
        return self._site[1]

    def _read_prefix(self, letters: bytes) -> ScoringState:
        """The state after `letters`: whole chunks are cached, the rest is read at once."""
        num_chunks = len(letters) // self._step
        whole = num_chunks * self._step
        shared = self._letters[:whole]
        if letters[: len(shared)] != shared:
            self._letters, self._states, self._totals = b"", [ScoringState.start(self._model)], {}
        while len(self._states) <= num_chunks:
            start = (len(self._states) - 1) * self._step
            chunk = letters[start : start + self._step]
            self._states.append(self._read(self._states[-1], chunk))
            self._states = _share_keys(self._states)
            self._letters = letters[: start + self._step]
        state = self._states[num_chunks]
        return self._read(state, letters[whole:]) if whole < len(letters) else state


def _share_keys(states: list[ScoringState]) -> list[ScoringState]:
    """Replace the keys and values of all states by views of those of the last one.

    Each state is a prefix of the last one, so its keys and values are as well.
    """
    mixers, longest = states[-1].model.mixers, states[-1].cache.pasts

    def share(state: ScoringState) -> ScoringState:
        pasts = [
            mixer.share_past(past, last) if past and last else past
            for mixer, past, last in zip(mixers, state.cache.pasts, longest, strict=True)
        ]
        return replace(state, cache=replace(state.cache, pasts=pasts))

    return [share(state) for state in states]
