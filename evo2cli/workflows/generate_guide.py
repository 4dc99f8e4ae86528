"""One sequence on its way through the rules."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import chain, cycle
from typing import NamedTuple

from evo2cli.data.documents import END_OF_DOCUMENT
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.automaton import base_codes
from evo2cli.workflows.generate_lookahead import Lookahead
from evo2cli.workflows.generate_rules import IS_GC, Rules

EOD = "eod"
MOST_FIRST_NODES = 50_000  # bases tried while looking for a way on where none is known
MOST_NODES = 2_000  # ... and for others beside it
_IN_PLACE_OF = ((0, 3, 1, 2), (1, 2, 0, 3), (2, 1, 3, 0), (3, 0, 2, 1))  # like A, C, G, T


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


class _Node(NamedTuple):
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
        self._rules = rules
        self._lookahead = lookahead
        self._node = _Node(0, state, 0, 0)

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next; none only at the start of what cannot be."""
        tokens = [ACGT[base] for base in range(len(ACGT)) if self._admits(base)]
        if self._rules.ends_at_eod and self._may_end(self._node):
            tokens.append(END_OF_DOCUMENT)
        return tuple(tokens)

    def advance(self, token: int) -> str | None:
        """Take in a token; returns why the sequence is over, or None."""
        if token == END_OF_DOCUMENT:
            return EOD
        self._enter(base_codes(bytes([token]))[0])
        return next(iter(self._rules.automaton.labels(self._node.state)), None)

    def _admits(self, base: int) -> bool:
        return self._after(self._node, base) is not None

    def _enter(self, base: int) -> None:
        self._node = self._step(self._node, base)

    def _after(self, node: _Node, base: int) -> _Node | None:
        """Where a base leads, or None where that breaks a rule or cannot be completed."""
        if not self._rules.bases_at(node.length) >> base & 1:
            return None
        following = self._step(node, base)
        if not self._lookahead.admits(following.length, following.state, following.num_gc):
            return None
        if self._lookahead.is_end(following.state) and not self._may_end(following):
            return None
        return following

    def _step(self, node: _Node, base: int) -> _Node:
        state = self._rules.automaton.moves(node.state)[base]
        return _Node(node.length + 1, state, node.num_gc + IS_GC[base], 0)

    def _may_end(self, node: _Node) -> bool:
        ending = self._rules.ending(node.length)
        return ending is not None and ending[0] <= node.num_gc <= ending[1]


class WindowGuide(Guide):
    """The same with windows of G and C that are shorter than the sequence.

    A table of all windows would be too large. Instead a way on to the end is searched for each
    base, depth first; it is found, too, when it comes back to a state and a window where it has
    been before, and could so go round for ever. The way of the base that is drawn is kept, so that
    there is always one.
    """

    def __init__(self, rules: Rules, lookahead: Lookahead, state: int) -> None:
        super().__init__(rules, lookahead, state)
        assert rules.corridor is not None
        self._size = rules.corridor.window
        self._low, self._high = rules.corridor.counts(self._size)
        self._settled = max(rules.settled, self._size)
        self._recent: list[int] = []  # bases, at most a window
        self._ways: dict[int, Iterator[int]] = {}  # what may follow each base that may come next
        self._kept: tuple[int, Iterator[int]] | None = None  # a base known to go on, and its way

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next; none only at the start of what cannot be."""
        self._ways = {}
        return super().allowed()

    def _admits(self, base: int) -> bool:
        following = self._after(self._node, base)
        if following is None:
            return False
        is_kept = self._kept is not None and self._kept[0] == base
        way = self._kept[1] if self._kept and is_kept else self._find_way(following, base)
        if way is not None:
            self._ways[base] = way
        return way is not None

    def _enter(self, base: int) -> None:
        super()._enter(base)
        self._recent = [*self._recent, base][-self._size :]
        way = self._ways[base]
        following = next(way, None)
        self._kept = None if following is None else (following, way)

    def _after(self, node: _Node, base: int) -> _Node | None:
        following = super()._after(node, base)
        if following is None:
            return None
        missing = max(self._size - following.length, 0)  # of the first window
        fits = self._low - missing <= following.num_gc <= self._high
        return following if fits and self._leaves_room(following) else None

    def _leaves_room(self, node: _Node) -> bool:
        """Whether windows that reach into fixed positions can still be kept, one by one."""
        places, length = self._rules.fixed_places, node.length
        following = bisect_left(places, length)
        if following == len(places) or places[following] >= length + self._size:
            return True
        fixed, free = self._rules.fixed_gc, self._rules.free
        last = min(length + self._size, self._settled)
        for end in range(max(places[following] + 1, self._size), last + 1):
            before = (node.window & ((1 << (self._size - (end - length))) - 1)).bit_count()
            least = before + fixed[end] - fixed[length]
            if least > self._high or least + free[end] - free[length] < self._low:
                return False
        return True

    def _step(self, node: _Node, base: int) -> _Node:
        length, state, num_gc, _ = super()._step(node, base)
        window = node.window << 1 | IS_GC[base]
        oldest = window >> self._size
        return _Node(length, state, num_gc - oldest, window & ((1 << self._size) - 1))

    def _may_end(self, node: _Node) -> bool:
        if node.length < self._size:
            return super()._may_end(node)
        return self._rules.ending(node.length) is not None  # each window was judged when full

    def _is_complete(self, node: _Node) -> bool:
        return (
            node.length == self._rules.length
            or self._lookahead.is_end(node.state)
            or (self._rules.ends_at_eod and self._may_end(node))
        )

    def _find_way(self, node: _Node, base: int) -> Iterator[int] | None:
        """Bases from `node`, which `base` has led to, to an end; None if none was found."""
        letters = [*self._recent, base]
        start = len(letters)
        path, choices = [node], [self._choices(letters)]
        seen = {node[1:]: 0}  # states and windows on the path, once no position differs
        failed: set[_Node] = set()
        spare = MOST_NODES if self._ways or self._kept else MOST_FIRST_NODES
        for _ in range(max(self._settled - node.length, 0) + spare):
            node = path[-1]
            if self._is_complete(node):
                return iter(letters[start:])
            following = self._try(node, choices[-1], letters, failed)
            if following is None:
                seen.pop(node[1:], None)
                failed.add(path.pop())
                choices.pop()
                letters.pop()
                if not path:
                    return None
                continue
            known = seen.get(following[1:])
            if known is not None and path[known].length >= self._settled:
                return chain(letters[start:], cycle(letters[start + known :]))
            seen[following[1:]] = len(path)
            path.append(following)
            choices.append(self._choices(letters))
        return None

    def _try(
        self, node: _Node, choices: Iterator[int], letters: list[int], failed: set[_Node]
    ) -> _Node | None:
        """The next node that a choice leads to, its base put at the end of `letters`."""
        for base in choices:
            following = self._after(node, base)
            if following is not None and following not in failed:
                letters.append(base)
                return following
        return None

    def _choices(self, letters: list[int]) -> Iterator[int]:
        """Bases to try: first the one that leaves the window, and its fellow, as counts stay.

        In the first window they go round, so that no run or excess arises where none is needed.
        """
        if len(letters) < self._size:
            return iter([(letters[-1] + step) % 4 for step in range(1, 5)])
        return iter(_IN_PLACE_OF[letters[-self._size]])
