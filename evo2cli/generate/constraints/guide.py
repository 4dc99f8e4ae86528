"""One sequence on its way through the rules."""

from typing import NamedTuple

from evo2cli.data.documents import END_OF_DOCUMENT
from evo2cli.generate.constraints.automaton import base_codes
from evo2cli.generate.constraints.lookahead import Lookahead
from evo2cli.generate.constraints.rules import IS_GC, Rules
from evo2cli.genome.alphabet import ACGT

EOD = "eod"


class FreeGuide:
    """Any token of the vocabulary; the end of a document ends it, if it is asked to."""

    def __init__(self, vocabulary: int, rules: Rules) -> None:
        self._rules = rules
        self._length = 0
        self._tokens = tuple(range(vocabulary))
        self._without_end = tuple(t for t in self._tokens if t != END_OF_DOCUMENT)

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next."""
        if self._rules.ends_at_eod and self._rules.ending(self._length) is None:
            return self._without_end
        return self._tokens

    def advance(self, token: int) -> str | None:
        """Take in a token; returns why the sequence is over, or None."""
        self._length += 1
        return EOD if self._rules.ends_at_eod and token == END_OF_DOCUMENT else None


class Node(NamedTuple):
    """Where a sequence has got to.

    Attributes:
        length: Bases generated.
        state: Of the automaton.
        num_gc: G and C among all of them, or in the last window where windows are shorter.
        window: For these windows, whether each of their bases is G or C, the last one lowest.
    """

    length: int
    state: int
    num_gc: int
    window: int


class Guide:
    """Bases from which the rest can still meet all rules; the end, where the sequence may end."""

    def __init__(self, rules: Rules, lookahead: Lookahead, state: int) -> None:
        """A sequence whose prompt left the automaton in `state`."""
        self.rules = rules
        self.lookahead = lookahead
        self._node = Node(0, state, 0, 0)

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next; none only at the start of what cannot be."""
        tokens = [ACGT[base] for base in range(len(ACGT)) if self._admits(base)]
        if self.rules.ends_at_eod and self._may_end(self._node):
            tokens.append(END_OF_DOCUMENT)
        return tuple(tokens)

    def advance(self, token: int) -> str | None:
        """Take in a token; returns why the sequence is over, or None."""
        if token == END_OF_DOCUMENT:
            return EOD
        self._enter(base_codes(bytes([token]))[0])
        return next(iter(self.rules.automaton.labels(self._node.state)), None)

    def _admits(self, base: int) -> bool:
        return self._after(self._node, base) is not None

    def _enter(self, base: int) -> None:
        self._node = self.step(self._node, base)

    def _after(self, node: Node, base: int) -> Node | None:
        """Where a base leads, or None where that breaks a rule or cannot be completed."""
        if not self.rules.bases_at(node.length) >> base & 1:
            return None
        following = self.step(node, base)
        if not self.lookahead.admits(following.length, following.state, following.num_gc):
            return None
        if self.lookahead.is_end(following.state) and not self._may_end(following):
            return None
        return following

    def step(self, node: Node, base: int) -> Node:
        """Where a base leads, be it allowed or not."""
        state = self.rules.automaton.moves(node.state)[base]
        return Node(node.length + 1, state, node.num_gc + IS_GC[base], 0)

    def _may_end(self, node: Node) -> bool:
        ending = self.rules.ending(node.length)
        return ending is not None and ending[0] <= node.num_gc <= ending[1]
