"""The least memory that reverses each segment of a chain, in exact bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memback.plans.links import Floats, Ints, Links
from memback.plans.segments import Choices

__all__ = ["Least"]


class Least(Choices):
    """For every segment the least need of a persistent schedule, and the cost of the cheapest choice that gives it.

    ``need[s, d]`` and ``cost[s, d]`` are of the segment of d links from s on. Without ``save_everything`` a stage is
    recorded only where it is reversed next. ``leaves`` give what is inside links of several stages; a link is recorded
    as a whole or left to its leaf.
    """

    def __init__(self, links: Links, save_everything: bool, leaves: Sequence[Least] = ()) -> None:
        super().__init__(links, save_everything, leaves)
        self.inside = tuple(leaves)
        n = len(links)
        self.need: Ints = np.zeros((n + 1, n + 1), np.int64)
        self.cost: Floats = np.zeros((n + 1, n + 1))
        self._right: Ints = np.zeros((n + 1, n + 1), np.int64)
        for length in range(1, n + 1):
            self._fill(length)

    def _fill(self, length: int) -> None:
        links, rows = self.links, len(self.links) - length + 1
        starts, stops = slice(0, rows), slice(length, length + rows)
        recorded = np.maximum(links.record[:rows] + links.beside[stops], links.reverse[:rows])
        both = np.diff(links.both)[:rows]
        if length == 1:
            need, cost = recorded, both
            if self.inside:
                need = np.asarray([leaf.need[0, -1] for leaf in self.inside])
                cost = np.asarray([leaf.cost[0, -1] for leaf in self.inside])
        else:
            need, cost = self._split(length, rows)
            if self.save_everything:
                inner = slice(1, rows + 1)
                kept = np.maximum(recorded, links.kept[:rows] + self.need[inner, length - 1])
                kept_cost = both + self.cost[inner, length - 1]
                better = (kept < need) | (kept == need) & (kept_cost < cost)
                need, cost = np.where(better, kept, need), np.where(better, kept_cost, cost)
        self.need[starts, length], self.cost[starts, length] = need, cost
        self._right[stops, length] = need + links.activation[:rows]

    def choose(self, s: int, t: int, free: int) -> int:
        rows = self.cost[s, 1 : t - s], self.cost[np.arange(s + 1, t), t - np.arange(s + 1, t)]
        return self.pick(s, t, free, *rows, self.cost[s + 1, t - s - 1])

    def pick(self, s: int, t: int, free: int, left: Floats, right: Floats, rest: float) -> int:
        """The cheapest choice that ``free`` bytes allow, by costs for what is left and right of each checkpoint.

        ``rest`` is the cost for what is right of link s, when that is kept. Where a segment needs no more than is free
        there is a choice that needs no more, so what is picked for its parts fits too.
        """
        links, length = self.links, t - s
        need = np.maximum(links.sweep[s, 1:length] + links.beside[t], self.need[s, 1:length])
        np.maximum(need, self._right[t, length - 1 : 0 : -1], out=need)
        cost = links.forward[s + 1 : t] - links.forward[s] + left + right
        cost[need > free] = np.inf
        best = int(np.argmin(cost))
        recorded = max(
            links.record[s] + links.beside[t], links.reverse[s], links.kept[s] + self.need[s + 1, length - 1]
        )
        kept = links.both[s + 1] - links.both[s] + rest
        return s if self.save_everything and recorded <= free and kept <= cost[best] else s + 1 + best

    def _split(self, length: int, rows: int) -> tuple[Ints, Floats]:
        """The best first checkpoint, for all segments of a length."""
        links, stops = self.links, slice(length, length + rows)
        lefts, rights = slice(1, length), slice(length - 1, 0, -1)
        need = np.maximum(links.sweep[:rows, lefts] + links.beside[stops, None], self.need[:rows, lefts])
        np.maximum(need, self._right[stops, rights], out=need)
        least = need.min(axis=1)
        at = np.arange(rows)[:, None] + np.arange(1, length)
        cost = self.cost[:rows, lefts] + self.cost[at, length - np.arange(1, length)]
        cost += links.forward[at] - links.forward[:rows, None]
        cost[need > least[:, None]] = np.inf
        return least, cost.min(axis=1)
