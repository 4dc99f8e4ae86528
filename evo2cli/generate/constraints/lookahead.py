"""Which partial sequences can still be completed: dynamic programming from the end backwards.

For each length there is a table. It holds, for each state of the automaton, the range of G and C
counts with which a partial sequence of this length can reach an end that satisfies all rules. A
sequence that only enters such states never breaks a rule and never gets stuck.

S states; [low, high] is a range of counts, empty if low > high.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evo2cli.errors import UserError
from evo2cli.generate.constraints.automaton import UNKNOWN
from evo2cli.generate.constraints.rules import IS_GC, Rules

MAX_STATES = 1 << 16
MAX_CELLS = 1 << 26  # states times lengths, 8 bytes each

_Counts = npt.NDArray[np.int32]
_NEVER = 1 << 29  # [_NEVER, -_NEVER] is an empty range


@dataclass(frozen=True)
class _Table:
    low_S: _Counts
    high_S: _Counts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and (
            np.array_equal(self.low_S, other.low_S) and np.array_equal(self.high_S, other.high_S)
        )


class Lookahead:
    """Tells which steps lead to a sequence that can be completed.

    GC windows shorter than the sequence are not considered here. If the counts that can be
    completed form several ranges with gaps between them, only the widest is kept: the lookahead may
    then refuse a sequence that could just be completed, but it never allows a dead end.
    """

    def __init__(self, rules: Rules, starts: Iterable[int]) -> None:
        """Look ahead from `starts`, the states in which the prompts leave the automaton.

        Raises:
            UserError: The tables would be too large.
        """
        states = rules.automaton.reachable(starts, MAX_STATES)
        if states is None:
            raise UserError(
                f"the patterns have more than {MAX_STATES:,} states to look ahead from; give "
                "fewer patterns, or patterns with fewer ambiguous bases"
            )
        self._counts_gc = rules.gc is not None and rules.gc.window >= rules.length
        if self._counts_gc and len(states) * rules.length > MAX_CELLS:
            raise UserError(
                f"--gc over {rules.length:,} bases and {len(states):,} states of patterns needs "
                "too much memory to look ahead; give a --gc-window, or fewer patterns"
            )
        self._rules = rules
        self._rows = {state: row for row, state in enumerate(states)}
        labels = [set(rules.automaton.labels(state)) for state in states]
        self._is_forbidden_S = np.array([bool(found & rules.forbidden) for found in labels])
        self._is_end_S = np.array([bool(found & rules.stops) for found in labels])
        # The states after the end of a match are not in the table, and are never looked up.
        self._next_4S = np.array(
            [
                [self._rows.get(after, 0) for after in rules.automaton.transitions(state)[:UNKNOWN]]
                for state in states
            ]
        ).T
        self._tables = self._make_tables()

    def admits(self, length: int, state: int, num_gc: int) -> bool:
        """Whether a partial sequence can be completed.

        Args:
            length: Its bases.
            state: Of the automaton, after these bases.
            num_gc: G and C among these bases.
        """
        table, row = self._tables[length], self._rows[state]
        return bool(table.low_S[row] <= num_gc <= table.high_S[row])

    def is_end(self, state: int) -> bool:
        """Whether a sequence ends when it enters this state."""
        return bool(self._is_end_S[self._rows[state]])

    def _make_tables(self) -> list[_Table]:
        tables = [self._table(self._rules.length, None)]
        conditions: object = None
        for length in reversed(range(self._rules.length)):
            previous = conditions
            conditions = self._final_counts(length), self._rules.bases_at(length)
            # Under equal conditions, a table that did not change from one length to the next will
            # not change any more.
            if len(tables) > 1 and tables[-1] is tables[-2] and conditions == previous:
                tables.append(tables[-1])
                continue
            table = self._table(length, tables[-1])
            tables.append(tables[-1] if table == tables[-1] else table)
        return tables[::-1]

    def _final_counts(self, length: int) -> tuple[int, int] | None:
        counts = self._rules.final_gc_counts(length)
        return counts if counts is None or self._counts_gc else (0, self._rules.length)

    def _table(self, length: int, following: _Table | None) -> _Table:
        """The table of a length; `following` is that of the next length, if there is one."""
        bounds = self._final_counts(length) or (_NEVER, -_NEVER)
        final_low_S, final_high_S = (np.full(len(self._rows), bound, np.int32) for bound in bounds)
        if following is None:
            low_S, high_S = final_low_S, final_high_S
        else:
            bases = self._rules.bases_at(length)
            ranges = [(final_low_S, final_high_S)] if self._rules.ends_at_eod else []
            for base in (base for base in range(UNKNOWN) if bases >> base & 1):
                next_S, added = self._next_4S[base], self._counts_gc * IS_GC[base]
                ranges.append((following.low_S[next_S] - added, following.high_S[next_S] - added))
            low_S, high_S = _union(*(np.stack(bounds) for bounds in zip(*ranges, strict=True)))
        low_S = np.where(self._is_end_S, final_low_S, low_S)
        high_S = np.where(self._is_end_S, final_high_S, high_S)
        return _Table(
            np.where(self._is_forbidden_S, _NEVER, low_S).astype(np.int32),
            np.where(self._is_forbidden_S, -_NEVER, high_S).astype(np.int32),
        )


def _union(low_KS: _Counts, high_KS: _Counts) -> tuple[_Counts, _Counts]:
    """The widest of K ranges, extended by all that overlap or adjoin it, directly or in a chain."""
    widest_1S = (high_KS - low_KS).argmax(0)[None]
    low_S = np.take_along_axis(low_KS, widest_1S, 0)[0]
    high_S = np.take_along_axis(high_KS, widest_1S, 0)[0]
    for _ in range(len(low_KS) - 1):
        touches_KS = (low_KS <= high_S + 1) & (high_KS >= low_S - 1) & (low_KS <= high_KS)
        low_S = np.where(touches_KS, low_KS, low_S).min(0)
        high_S = np.where(touches_KS, high_KS, high_S).max(0)
    return low_S, high_S
