"""Constrained decoding: the tokens that may come next in a sequence."""

from typing import NamedTuple

from evo2cli.data.documents import END_OF_DOCUMENT
from evo2cli.generate.constraints.automaton import base_codes
from evo2cli.generate.constraints.lookahead import Lookahead
from evo2cli.generate.constraints.rules import IS_GC, Rules
from evo2cli.genome.alphabet import ACGT

EOD = "eod"


class FreeGuide:
    """Allows every token of the vocabulary; only the end-of-document token may end the sequence."""

    def __init__(self, vocabulary: int, rules: Rules) -> None:
        self._rules = rules
        self._length = 0
        self._tokens = tuple(range(vocabulary))
        self._without_eod = tuple(t for t in self._tokens if t != END_OF_DOCUMENT)

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next."""
        if self._rules.ends_at_eod and self._rules.final_gc_counts(self._length) is None:
            return self._without_eod
        return self._tokens

    def advance(self, token: int) -> str | None:
        """Append a token; returns why the sequence ends here, or None if it does not."""
        self._length += 1
        return EOD if self._rules.ends_at_eod and token == END_OF_DOCUMENT else None


class Node(NamedTuple):
    """The state of the constraints after a partial sequence.

    Attributes:
        length: Generated bases.
        state: State of the automaton.
        num_gc: Number of G and C among all generated bases or, with GC windows shorter than the
            sequence, in the last window.
        window: With such windows, one bit per base of the last window, set for G or C; the last
            base is the lowest bit.
    """

    length: int
    state: int
    num_gc: int
    window: int


class Guide:
    """Allows the bases after which the rest of the sequence can still satisfy all rules."""

    def __init__(self, rules: Rules, lookahead: Lookahead, state: int) -> None:
        """A sequence whose prompt left the automaton in `state`."""
        self.rules = rules
        self.lookahead = lookahead
        self._node = Node(0, state, 0, 0)

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next; empty only at the start, if no sequence is possible."""
        tokens = [ACGT[base] for base in range(len(ACGT)) if self._admits(base)]
        if self.rules.ends_at_eod and self._may_end(self._node):
            tokens.append(END_OF_DOCUMENT)
        return tuple(tokens)

    def advance(self, token: int) -> str | None:
        """Append a token; returns why the sequence ends here, or None if it does not."""
        if token == END_OF_DOCUMENT:
            return EOD
        self._append(base_codes(bytes([token]))[0])
        return next(iter(self.rules.automaton.labels(self._node.state)), None)

    def _admits(self, base: int) -> bool:
        return self._successor(self._node, base) is not None

    def _append(self, base: int) -> None:
        self._node = self.step(self._node, base)

    def _successor(self, node: Node, base: int) -> Node | None:
        """The node after a base, or None if a rule is broken there or cannot be satisfied later."""
        if not self.rules.bases_at(node.length) >> base & 1:
            return None
        successor = self.step(node, base)
        if not self.lookahead.admits(successor.length, successor.state, successor.num_gc):
            return None
        if self.lookahead.is_end(successor.state) and not self._may_end(successor):
            return None
        return successor

    def step(self, node: Node, base: int) -> Node:
        """The node after a base, whether or not the base is allowed."""
        state = self.rules.automaton.transitions(node.state)[base]
        return Node(node.length + 1, state, node.num_gc + IS_GC[base], 0)

    def _may_end(self, node: Node) -> bool:
        counts = self.rules.final_gc_counts(node.length)
        return counts is not None and counts[0] <= node.num_gc <= counts[1]
