"""The ways to run a part of a step with less kept: minimum cuts of its recorded calls, for a price per byte, swept.

With ``a`` whether a value is there for backward, and ``r`` whether its call is run again, what is kept is ``a - r``.
What backward needs is there; what a call that is run again reads is there; and a call that is run again is of use. The
least of (seconds of what is run again) + (price) (bytes kept) is a linear program of differences, whose solutions are
whole numbers: the minimum cut of a project-selection problem (Picard 1976, Management Science 22). From price to price,
its solutions are the lower convex hull of seconds against bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from memback.plans.calls.recorded import RecordedCalls
from memback.plans.linear_program import quiet_solver

__all__ = ["Cut", "Part", "cuts"]

_MOST = 24
"""Most points of the hull that are looked for."""


@dataclass(frozen=True)
class Part:
    """Neighbouring calls from ``start`` to ``stop`` (exclusive). What they read from before is there.

    To keep a value of those that are ``free``, or that are there anyway, takes nothing.
    """

    calls: RecordedCalls
    start: int
    stop: int
    free: frozenset[int] = frozenset()

    def price_bytes(self, number: int) -> int:
        """What keeping a value takes."""
        value = self.calls.values[number]
        return 0 if number in self.free or math.isinf(value.alone) else value.bytes

    def values(self) -> Iterator[int]:
        """The values that these calls make."""
        for call in range(self.start, self.stop):
            yield from self.calls.makes[call]

    def is_wanted(self, number: int) -> bool:
        """Whether a value has to be there: backward needs it, or later parts read it."""
        return bool(self.calls.values[number].needs) or self.goes_on(number)

    def goes_on(self, number: int) -> bool:
        """Whether later parts read a value."""
        readers = self.calls.readers[number]
        return bool(readers) and readers[-1] >= self.stop


class Cut(NamedTuple):
    """Calls to run again, what that takes, and the bytes that are kept and would not be there anyway.

    At its ``price``, in seconds per byte, no other choice has a lower sum of seconds and of the price of what is kept.
    """

    again: frozenset[int]
    seconds: float
    kept: int
    price: float


def cuts(part: Part) -> list[Cut]:
    """The points of the hull of seconds against bytes, from none to run again to as many as help."""
    program = _Program(part)
    if not program.runs:
        return [program.point((), 0.0)]
    low, high = program.point((), 0.0), program.solve(1e6 * program.price)
    found = {low.again: low, high.again: high}
    waiting = [(low, high)]
    while waiting and len(found) < _MOST:
        low, high = waiting.pop(0)
        if low.kept <= high.kept or high.seconds <= low.seconds:
            continue
        middle = program.solve((high.seconds - low.seconds) / (low.kept - high.kept))
        if middle.again not in found:
            found[middle.again] = middle
            waiting += [(low, middle), (middle, high)]
    return sorted(found.values(), key=lambda cut: (cut.seconds, cut.kept))


class _Program:
    """The linear program of a part, for any price."""

    def __init__(self, part: Part) -> None:
        import highspy

        self.part, calls = part, part.calls
        self.runs = {c: i for i, c in enumerate(c for c in range(part.start, part.stop) if self._may_run(c))}
        self.numbers = [v for v in part.values() if part.is_wanted(v) or any(r in self.runs for r in calls.readers[v])]
        there = {v: len(self.runs) + i for i, v in enumerate(self.numbers)}
        self.sizes = np.array([part.price_bytes(v) for v in self.numbers], dtype=float)
        self.costs = np.array([calls.costs[c] for c in self.runs], dtype=float) + 1e-12
        self.price = (self.costs.sum() + 1e-12) / max(self.sizes.sum(), 1.0)
        lower = np.zeros(len(self.runs) + len(self.numbers))
        upper = np.ones_like(lower)
        rows: list[tuple[int, int]] = []
        self.makers = np.array([self.runs.get(calls.values[v].call, -1) for v in self.numbers], dtype=int)
        for v, column in there.items():
            value = calls.values[v]
            maker = self.runs.get(value.call)
            if part.is_wanted(v) and value.becomes is None:
                lower[column] = 1.0
            if maker is not None:
                if part.goes_on(v) and value.becomes is None:
                    upper[maker] = 0.0
                rows.append((column, maker))
                if value.becomes is not None:
                    rows.append((maker, column))  # it can't be kept, so it is there only if its call is run
            elif value.becomes is not None:
                upper[column] = 0.0
            rows += [(column, self.runs[r]) for r in calls.readers[v] if r in self.runs]
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(lower), len(rows)
        lp.col_lower_, lp.col_upper_, lp.col_cost_ = lower, upper, np.zeros_like(lower)
        lp.row_lower_, lp.row_upper_ = np.zeros(len(rows)), np.full(len(rows), highspy.kHighsInf)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_ = np.arange(0, 2 * len(rows) + 1, 2)
        lp.a_matrix_.index_ = np.array(rows, dtype=np.int32).reshape(-1)
        lp.a_matrix_.value_ = np.tile([1.0, -1.0], len(rows))
        self.highs = quiet_solver()
        self.highs.passModel(lp)

    def _may_run(self, call: int) -> bool:
        return self.part.calls.replayable[call] and bool(self.part.calls.makes[call])

    def solve(self, price: float) -> Cut:
        """The best set of calls for a price in seconds per byte."""
        scale = 1.0 / max(price * self.sizes.max(initial=1.0), self.costs.max(initial=0.0), 1e-300)
        kept = price * self.sizes
        cost = np.concatenate([self.costs, kept])
        np.subtract.at(cost, self.makers[self.makers >= 0], kept[self.makers >= 0])
        self.highs.changeColsCost(len(cost), np.arange(len(cost), dtype=np.int32), cost * scale)
        self.highs.run()
        solution = np.asarray(self.highs.getSolution().col_value)
        return self.point(frozenset(c for c, i in self.runs.items() if solution[i] > 0.5), price)

    def point(self, again: Collection[int], price: float) -> Cut:
        """What a choice takes."""
        chosen = frozenset(self.part.calls.recomputed(again))
        calls = self.part.calls
        read = {v for c in chosen for v in calls.reads[c]}
        kept = (
            self.part.price_bytes(v)
            for v in self.numbers
            if calls.values[v].call not in chosen and (self.part.is_wanted(v) or v in read)
        )
        return Cut(chosen, calls.cost(chosen), sum(kept), price)
