"""Sequences whose every window has its share of G and C, windows being shorter than they are."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import chain, cycle, islice

from evo2cli.generate.constraints.guide import Guide, Node
from evo2cli.generate.constraints.lookahead import Lookahead
from evo2cli.generate.constraints.rules import IS_GC, Rules

MOST_FIRST_NODES = 50_000  # bases tried while looking for a way on where none is known
MOST_NODES = 2_000  # ... and for others beside it, or two windows where that is more
_IN_PLACE_OF = ((0, 3, 1, 2), (1, 2, 0, 3), (2, 1, 3, 0), (3, 0, 2, 1))  # like A, C, G, T


class WindowGuide(Guide):
    """A guide that keeps to a corridor of G and C in windows shorter than the sequence.

    A table of all windows would be too large. Instead one way on to the end is always known, so
    that none gets stuck. Another base may come next if the known way can follow it, too; or else if
    a way is found by search, depth first, that comes to an end, or back to a state and a window
    where it has been before, and could so go round for ever.
    """

    def __init__(self, rules: Rules, lookahead: Lookahead, state: int) -> None:
        super().__init__(rules, lookahead, state)
        assert rules.corridor is not None
        self.size = rules.corridor.window
        self._low, self._high = rules.corridor.counts(self.size)
        self._settled = max(rules.settled, self.size)
        self._recent: list[int] = []  # bases, at most a window
        self._way: Way | None = None  # known to go on from here
        self._others: dict[int, Way] = {}  # beginning with bases that it cannot follow

    def allowed(self) -> tuple[int, ...]:
        """Token ids that may come next; none only at the start of what cannot be."""
        self._others = {}
        return super().allowed()

    def _admits(self, base: int) -> bool:
        following = self._after(self._node, base)
        if following is None:
            return False
        if self._way is not None and self._way.may_begin(base, following):
            return True
        found = self._find_way(following, base)
        if found is None:
            return False
        way = Way(self, self._node, chain([base], found))
        if self._way is None:
            self._way = way
        else:
            self._others[base] = way
        return True

    def _enter(self, base: int) -> None:
        super()._enter(base)
        self._recent = [*self._recent, base][-self.size :]
        way = self._others.get(base, self._way)
        assert way is not None
        way.begin(base, self._node)
        self._way = way if way.bases else None

    def spare(self, node: Node) -> tuple[int, int]:
        """How many G and C more, and fewer, the last window up to a node could have."""
        missing = max(self.size - node.length, 0)  # of the first window
        return self._high - node.num_gc, node.num_gc - (self._low - missing)

    def _after(self, node: Node, base: int) -> Node | None:
        following = super()._after(node, base)
        if following is None:
            return None
        fits = min(self.spare(following)) >= 0
        return following if fits and self._leaves_room(following) else None

    def _leaves_room(self, node: Node) -> bool:
        """Whether windows that reach into fixed positions can still be kept, one by one."""
        places, length = self.rules.fixed_places, node.length
        following = bisect_left(places, length)
        if following == len(places) or places[following] >= length + self.size:
            return True
        fixed, free = self.rules.fixed_gc, self.rules.free
        last = min(length + self.size, self._settled)
        for end in range(max(places[following] + 1, self.size), last + 1):
            before = (node.window & ((1 << (self.size - (end - length))) - 1)).bit_count()
            least = before + fixed[end] - fixed[length]
            if least > self._high or least + free[end] - free[length] < self._low:
                return False
        return True

    def step(self, node: Node, base: int) -> Node:
        """As `Guide`."""
        length, state, num_gc, _ = super().step(node, base)
        window = node.window << 1 | IS_GC[base]
        oldest = window >> self.size
        return Node(length, state, num_gc - oldest, window & ((1 << self.size) - 1))

    def _may_end(self, node: Node) -> bool:
        if node.length < self.size:
            return super()._may_end(node)
        return self.rules.ending(node.length) is not None  # each window was judged when full

    def _is_complete(self, node: Node) -> bool:
        return (
            node.length == self.rules.length
            or self.lookahead.is_end(node.state)
            or (self.rules.ends_at_eod and self._may_end(node))
        )

    def _find_way(self, node: Node, base: int) -> Iterator[int] | None:
        """Bases from `node`, which `base` has led to, to an end; None if none was found."""
        letters = [*self._recent, base]
        start = len(letters)
        path, choices = [node], [self._choices(letters)]
        seen = {node[1:]: 0}  # states and windows on the path, once no position differs
        failed: set[Node] = set()
        most = MOST_FIRST_NODES if self._way is None else max(MOST_NODES, 2 * self.size)
        for _ in range(max(self._settled - node.length, 0) + most):
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
        self, node: Node, choices: Iterator[int], letters: list[int], failed: set[Node]
    ) -> Node | None:
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
        if len(letters) < self.size:
            return iter([(letters[-1] + step) % 4 for step in range(1, 5)])
        return iter(_IN_PLACE_OF[letters[-self.size]])


class Way:
    """Bases that may follow each other from some node on, to an end or for ever.

    Attributes:
        bases: The next ones, a window of them where there are so many, each with the state that it
            leads to.
    """

    def __init__(self, guide: WindowGuide, node: Node, bases: Iterator[int]) -> None:
        self.bases: deque[tuple[int, int]] = deque()
        self._guide, self._rest = guide, bases
        self._last = node  # where the bases lead to
        self._more: deque[int] = deque()  # G and C that the window after each could have more,
        self._fewer: deque[int] = deque()  # and fewer
        self._extend(guide.size)

    def _extend(self, count: int) -> None:
        left = self._guide.rules.length - self._last.length
        for base in islice(self._rest, min(count, left)):
            self._last = self._guide.step(self._last, base)
            more, fewer = self._guide.spare(self._last)
            self.bases.append((base, self._last.state))
            self._more.append(more)
            self._fewer.append(fewer)

    def may_begin(self, base: int, node: Node) -> bool:
        """Whether all but the first base can follow `base`, which leads to `node`."""
        gained = IS_GC[base] - IS_GC[self.bases[0][0]]
        if gained and min(self._more if gained > 0 else self._fewer) < 1:
            return False
        if gained and self._last.length < self._guide.size:  # the end judges all bases together
            return False
        return self._states(node) is not None

    def _states(self, node: Node) -> list[int] | None:
        """Those of another first base, up to one that the way is in anyway, or the end; or None."""
        lookahead, state, found = self._guide.lookahead, node.state, list[int]()
        for offset, (following, usual) in enumerate(self.bases):
            if offset:
                state = self._guide.rules.automaton.moves(state)[following]
            if state == usual:
                return found
            if lookahead.is_end(state) or not lookahead.admits(
                node.length + offset, state, node.num_gc
            ):
                return None
            found.append(state)
        return found if self._last.length == self._guide.rules.length else None

    def begin(self, base: int, node: Node) -> None:
        """Go on by `base`, which may be another than the first, to `node`."""
        gained = IS_GC[base] - IS_GC[self.bases[0][0]]
        states = self._states(node)
        assert states is not None
        for offset, state in enumerate(states):
            self.bases[offset] = self.bases[offset][0], state
        if gained:
            self._more = deque(more - gained for more in self._more)
            self._fewer = deque(fewer + gained for fewer in self._fewer)
            length, state, num_gc, window = self._last
            window ^= 1 << (len(self.bases) - 1)
            self._last = Node(length, state, num_gc + gained, window)
        for line in (self.bases, self._more, self._fewer):
            line.popleft()
        self._extend(1)
