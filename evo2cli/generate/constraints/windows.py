"""Sequences with a GC range in every window, for windows shorter than the sequence."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import chain, cycle, islice

from evo2cli.generate.constraints.guide import Guide, Node
from evo2cli.generate.constraints.lookahead import Lookahead
from evo2cli.generate.constraints.rules import IS_GC, Rules

MAX_FIRST_STEPS = 50_000  # steps of the search for the first continuation
MAX_STEPS = 2_000  # steps of the search for any other, or two windows if that is more
# For each base, the bases in the order in which they best replace it: itself, the other one of
# the same GC content, and then the rest.
_REPLACEMENTS = ((0, 3, 1, 2), (1, 2, 0, 3), (2, 1, 3, 0), (3, 0, 2, 1))


class WindowGuide(Guide):
    """A guide for GC windows that are shorter than the sequence.

    A table of all windows would be too large. Instead, the guide always knows one continuation to
    an end, so that a sequence never gets stuck. Another base is allowed if the known continuation
    can follow it, too, or if a depth-first search finds a continuation for it: one that reaches an
    end, or returns to a state and a window it has already been in and can therefore be repeated
    forever.
    """

    def __init__(self, rules: Rules, lookahead: Lookahead, state: int) -> None:
        super().__init__(rules, lookahead, state)
        assert rules.gc is not None
        self.size = rules.gc.window
        self._low, self._high = rules.gc.counts(self.size)
        # From this length on, all windows are full and no position is fixed.
        self._uniform_from = max(rules.fixed_end, self.size)
        self._recent: list[int] = []  # the last bases, at most a window of them
        self._known: Continuation | None = None
        self._others: dict[int, Continuation] = {}  # by first base, where `_known` cannot follow it

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next; empty only at the start, if no sequence is possible."""
        self._others = {}
        return super().allowed()

    def _admits(self, base: int) -> bool:
        successor = self._successor(self._node, base)
        if successor is None:
            return False
        if self._known is not None and self._known.can_start_with(base, successor):
            return True
        found = self._search(successor, base)
        if found is None:
            return False
        continuation = Continuation(self, self._node, chain([base], found))
        if self._known is None:
            self._known = continuation
        else:
            self._others[base] = continuation
        return True

    def _append(self, base: int) -> None:
        super()._append(base)
        self._recent = [*self._recent, base][-self.size :]
        continuation = self._others.get(base, self._known)
        assert continuation is not None
        continuation.advance(base, self._node)
        self._known = continuation if continuation.bases else None

    def spare(self, node: Node) -> tuple[int, int]:
        """How many G and C more, and how many fewer, the last window of a node could have."""
        missing = max(self.size - node.length, 0)  # bases of the first window
        return self._high - node.num_gc, node.num_gc - (self._low - missing)

    def _successor(self, node: Node, base: int) -> Node | None:
        successor = super()._successor(node, base)
        if successor is None or min(self.spare(successor)) < 0:
            return None
        return successor if self._agrees_with_fixed(successor) else None

    def _agrees_with_fixed(self, node: Node) -> bool:
        """Whether every window that reaches into fixed positions can, by itself, stay in range."""
        positions, length = self.rules.fixed_positions, node.length
        index = bisect_left(positions, length)
        if index == len(positions) or positions[index] >= length + self.size:
            return True
        required, optional = self.rules.required_gc, self.rules.optional_gc
        last = min(length + self.size, self._uniform_from)
        for end in range(max(positions[index] + 1, self.size), last + 1):
            before = (node.window & ((1 << (self.size - (end - length))) - 1)).bit_count()
            least = before + required[end] - required[length]
            most = least + optional[end] - optional[length]
            if least > self._high or most < self._low:
                return False
        return True

    def step(self, node: Node, base: int) -> Node:
        """As in `Guide`, with `num_gc` and `window` of the last window."""
        length, state, num_gc, _ = super().step(node, base)
        window = node.window << 1 | IS_GC[base]
        oldest = window >> self.size
        return Node(length, state, num_gc - oldest, window & ((1 << self.size) - 1))

    def _may_end(self, node: Node) -> bool:
        if node.length < self.size:
            return super()._may_end(node)
        # Every full window was checked when its last base was appended.
        return self.rules.final_gc_counts(node.length) is not None

    def _is_complete(self, node: Node) -> bool:
        return (
            node.length == self.rules.length
            or self.lookahead.is_end(node.state)
            or (self.rules.ends_at_eod and self._may_end(node))
        )

    def _search(self, node: Node, base: int) -> Iterator[int] | None:
        """Search for bases from `node`, which `base` has led to, to an end; None if there are none.

        Depth-first, within a limited number of steps.
        """
        bases = [*self._recent, base]
        start = len(bases)
        path, candidates = [node], [self._candidates(bases)]
        depths = {node[1:]: 0}  # where on the path each state and window was entered
        dead_ends: set[Node] = set()
        limit = MAX_FIRST_STEPS if self._known is None else max(MAX_STEPS, 2 * self.size)
        for _ in range(max(self._uniform_from - node.length, 0) + limit):
            node = path[-1]
            if self._is_complete(node):
                return iter(bases[start:])
            for candidate in candidates[-1]:
                successor = self._successor(node, candidate)
                if successor is not None and successor not in dead_ends:
                    break
            else:
                depths.pop(node[1:], None)
                dead_ends.add(path.pop())
                candidates.pop()
                bases.pop()
                if not path:
                    return None
                continue
            bases.append(candidate)
            depth = depths.get(successor[1:])
            if depth is not None and path[depth].length >= self._uniform_from:
                return chain(bases[start:], cycle(bases[start + depth :]))
            depths[successor[1:]] = len(path)
            path.append(successor)
            candidates.append(self._candidates(bases))
        return None

    def _candidates(self, bases: list[int]) -> Iterator[int]:
        """The next base to try: first the one that leaves the window, which keeps all counts.

        In the first window the bases take turns, which avoids long runs and an extreme GC fraction.
        """
        if len(bases) < self.size:
            return iter([(bases[-1] + offset) % 4 for offset in range(1, 5)])
        return iter(_REPLACEMENTS[bases[-self.size]])


class Continuation:
    """Bases that may follow a node, up to an end or forever.

    Attributes:
        bases: The next bases, at most a window of them, each with the state it leads to.
    """

    def __init__(self, guide: WindowGuide, node: Node, bases: Iterator[int]) -> None:
        self.bases: deque[tuple[int, int]] = deque()
        self._guide = guide
        self._rest = bases
        self._last = node  # the node after `bases`
        # How many G and C more, and fewer, the window that ends at each of `bases` could have.
        self._more: deque[int] = deque()
        self._fewer: deque[int] = deque()
        self._extend(guide.size)

    def _extend(self, count: int) -> None:
        remaining = self._guide.rules.length - self._last.length
        for base in islice(self._rest, min(count, remaining)):
            self._last = self._guide.step(self._last, base)
            more, fewer = self._guide.spare(self._last)
            self.bases.append((base, self._last.state))
            self._more.append(more)
            self._fewer.append(fewer)

    def can_start_with(self, base: int, node: Node) -> bool:
        """Whether `base`, which leads to `node`, may take the place of the first base."""
        added = IS_GC[base] - IS_GC[self.bases[0][0]]
        if added and min(self._more if added > 0 else self._fewer) < 1:
            return False
        # A sequence that ends within the first window is judged by all of its bases together.
        if added and self._last.length < self._guide.size:
            return False
        return self._changed_states(node) is not None

    def _changed_states(self, node: Node) -> list[int] | None:
        """The states after each base if the first one leads to `node`; None if one is not allowed.

        They are listed up to the first that is the same as before.
        """
        lookahead, state, changed = self._guide.lookahead, node.state, list[int]()
        for offset, (base, usual) in enumerate(self.bases):
            if offset:
                state = self._guide.rules.automaton.transitions(state)[base]
            if state == usual:
                return changed
            if lookahead.is_end(state) or not lookahead.admits(
                node.length + offset, state, node.num_gc
            ):
                return None
            changed.append(state)
        return changed if self._last.length == self._guide.rules.length else None

    def advance(self, base: int, node: Node) -> None:
        """Remove the first base, for which `base` was taken, leading to `node`."""
        added = IS_GC[base] - IS_GC[self.bases[0][0]]
        states = self._changed_states(node)
        assert states is not None
        for offset, state in enumerate(states):
            self.bases[offset] = self.bases[offset][0], state
        if added:
            self._more = deque(more - added for more in self._more)
            self._fewer = deque(fewer + added for fewer in self._fewer)
            length, state, num_gc, window = self._last
            window ^= 1 << (len(self.bases) - 1)
            self._last = Node(length, state, num_gc + added, window)
        for values in (self.bases, self._more, self._fewer):
            values.popleft()
        self._extend(1)
