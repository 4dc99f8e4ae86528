"""From where a sequence can still be completed: every rule, seen from the end backwards.

A table for each length tells, for each state of the patterns' automaton, with how many G and C in
the sequence so far it can go on to an end that all rules allow. A sequence that only ever enters
such states never breaks a rule and never gets stuck.

S states, [low, high] a range of counts, empty where low > high.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evo2cli.errors import UserError
from evo2cli.generate.constraints.automaton import UNKNOWN
from evo2cli.generate.constraints.rules import IS_GC, Rules

MOST_STATES = 1 << 16
MOST_CELLS = 1 << 26  # states times lengths, 8 bytes each

_Counts = npt.NDArray[np.int32]
_NEVER = 1 << 29


@dataclass(frozen=True)
class _Table:
    low_S: _Counts
    high_S: _Counts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and (
            np.array_equal(self.low_S, other.low_S) and np.array_equal(self.high_S, other.high_S)
        )


class Lookahead:
    """Which steps lead to a sequence that can be completed.

    Windows of a GC corridor that are shorter than the sequence are not looked at here; nor does the
    table know ranges with holes: where the counts that can be completed fall apart into several,
    the widest is taken. It may then refuse what could just be met, but never allows a dead end.
    """

    def __init__(self, rules: Rules, starts: Iterable[int]) -> None:
        """Look ahead from all `starts`, states in which prompts leave the automaton.

        Raises:
            UserError: There is too much to look at.
        """
        states = rules.automaton.reachable(starts, MOST_STATES)
        if states is None:
            raise UserError(
                f"the patterns have more than {MOST_STATES:,} states to look ahead from; give "
                "fewer, or with fewer ambiguous bases"
            )
        corridor = rules.corridor
        self._counts_gc = corridor is not None and corridor.window >= rules.length
        if self._counts_gc and len(states) * rules.length > MOST_CELLS:
            raise UserError(
                f"--gc over {rules.length:,} bases with {len(states):,} states of patterns is too "
                "much to look ahead; give a --gc-window, or fewer patterns"
            )
        self._rules = rules
        self._rows = {state: row for row, state in enumerate(states)}
        labels = [set(rules.automaton.labels(state)) for state in states]
        self._is_forbidden = np.array([bool(found & rules.forbidden) for found in labels])
        self._is_end = np.array([bool(found & rules.stops) for found in labels])
        # A state where a match ends is not gone on from: it may lead to states outside the table.
        self._moves_4S = np.array(
            [
                [self._rows.get(after, 0) for after in rules.automaton.moves(state)[:UNKNOWN]]
                for state in states
            ]
        ).T
        self._tables = self._fill()

    def admits(self, length: int, state: int, count: int) -> bool:
        """Whether a sequence may get to a state of the automaton.

        Args:
            length: Bases with the one that leads there.
            state: Of the automaton.
            count: Of G and C among these bases.
        """
        table, row = self._tables[length], self._rows[state]
        return bool(table.low_S[row] <= count <= table.high_S[row])

    def is_end(self, state: int) -> bool:
        """Whether a sequence is over that gets there."""
        return bool(self._is_end[self._rows[state]])

    def _fill(self) -> list[_Table]:
        tables = [self._arrivals(self._rules.length, None)]
        situation: object = None
        for length in reversed(range(self._rules.length)):
            last, situation = situation, (self._ending(length), self._rules.bases_at(length))
            # What no longer changes from one length to the next goes on unchanged.
            if len(tables) > 1 and tables[-1] is tables[-2] and situation == last:
                tables.append(tables[-1])
                continue
            table = self._arrivals(length, tables[-1])
            tables.append(tables[-1] if table == tables[-1] else table)
        return tables[::-1]

    def _ending(self, length: int) -> tuple[int, int] | None:
        ending = self._rules.ending(length)
        return ending if ending is None or self._counts_gc else (0, self._rules.length)

    def _arrivals(self, length: int, after: _Table | None) -> _Table:
        """With how many G and C every state may be entered at `length`, `after` being one on."""
        ending = self._ending(length) or (_NEVER, -_NEVER)
        ends = [np.full(len(self._rows), count, np.int32) for count in ending]
        if after is None:
            low_S, high_S = ends
        else:
            bases = self._rules.bases_at(length)
            ranges = [ends] if self._rules.ends_at_eod else []
            for base in (base for base in range(UNKNOWN) if bases >> base & 1):
                moves_S, shift = self._moves_4S[base], self._counts_gc * IS_GC[base]
                ranges.append([after.low_S[moves_S] - shift, after.high_S[moves_S] - shift])
            low_S, high_S = _union(*(np.stack(bounds) for bounds in zip(*ranges, strict=True)))
        low_S = np.where(self._is_end, ends[0], low_S)
        high_S = np.where(self._is_end, ends[1], high_S)
        return _Table(
            np.where(self._is_forbidden, _NEVER, low_S).astype(np.int32),
            np.where(self._is_forbidden, -_NEVER, high_S).astype(np.int32),
        )


def _union(low_KS: _Counts, high_KS: _Counts) -> tuple[_Counts, _Counts]:
    """Of K ranges, the widest and all that touch it, one after the other."""
    widest_1S = (high_KS - low_KS).argmax(0)[None]
    low_S = np.take_along_axis(low_KS, widest_1S, 0)[0]
    high_S = np.take_along_axis(high_KS, widest_1S, 0)[0]
    for _ in range(len(low_KS) - 1):
        touches_KS = (low_KS <= high_S + 1) & (high_KS >= low_S - 1) & (low_KS <= high_KS)
        low_S = np.where(touches_KS, low_KS, low_S).min(0)
        high_S = np.where(touches_KS, high_KS, high_S).max(0)
    return low_S, high_S
