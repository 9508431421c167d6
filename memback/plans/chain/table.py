"""The cheapest persistent schedule of every segment of a chain for every amount of free memory, by dynamic programming.

(Herrmann, Beaumont et al., "Optimal checkpointing for heterogeneous chains", arXiv 1911.13214.) For the segment from
position s to position t with m units free,

    C(s, t, m) = min of  min over s < k < t of  F(s, k) + C(k, t, m - x(k)) + C(s, k, m)       (keep the input alone)
                 and  F(s, s + 1) + B(s, s + 1) + C(s + 1, t, m - kept(s))                     (keep everything)

where F and B are costs of forward and backward, x(k) the activation at k and kept(s) all that link s saves; each choice
only where what is live during its forwards and its backward fits into m.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from memback.plans.chain.least import Least
from memback.plans.links import Floats, Ints
from memback.plans.segments import Choices, Segment

__all__ = ["Table"]

_Size = TypeVar("_Size", int, Ints)


class Table(Choices):
    """C(s, t, m) for m = 0 … columns - 1, in units of ``unit`` bytes.

    The table is exact where sizes are whole units. Others are rounded up, those of stages that are kept so that the sum
    over neighbours is less than a unit off. A choice looks up what its parts would cost, but is made by their needs in
    exact bytes, and so many are left to the parts: roundings do not add up, and a schedule that is said to fit does.

    Columns below a segment's least need are infinite, and those that keep everything cost the same: only what is in
    between is computed.
    """

    def __init__(self, least: Least, unit: int, columns: int, leaves: Sequence[Table] = ()) -> None:
        super().__init__(least.links, least.save_everything, leaves)
        links = least.links
        self.unit = unit
        self.columns = columns
        self._origin = 0
        self._inside = leaves
        self._least = least
        self._activation = _units(links.activation, unit)
        self._kept = np.diff(_units(np.concatenate(([0], np.cumsum(links.kept))), unit))
        n = len(links)
        self._need = _units(least.need, unit)
        self._recorded = self._recording()
        self._all = self._saturation()
        self._from = [np.full((n - s, columns), np.inf) for s in range(n)]
        """C(s, s + 1 …, m)"""
        self._to = [np.full((t, columns), np.inf) for t in range(n + 1)]
        """C(0 …, t, m - x) + F(0, …): what follows a checkpoint at 0 …"""
        self._scratch = np.empty((n, columns))
        for s in reversed(range(n)):
            for t in range(s + 1, n + 1):
                self._fill(s, t)

    def whole(self, free: int, column: int) -> Segment:
        """The whole chain in ``free`` bytes, to be split by the costs in a column, as if it stood for them.

        Where sizes are rounded up, a column of more memory tells better what parts will cost in their exact bytes.
        """
        self._origin = free - column * self.unit
        for leaf in self._inside:
            leaf.whole(free, column)
        return Segment(self, 0, len(self.links), free)

    @property
    def row(self) -> Floats:
        """C of the whole chain by free units."""
        return self._from[0][-1]

    @property
    def saturation(self) -> int:
        """Units with which the whole chain is kept, or more than there are columns."""
        return int(self._all[0, -1])

    def _recording(self) -> Ints:
        """Units with which link s can be recorded and reversed in a segment that ends at t: [s, t]."""
        recorded = np.maximum(self.links.record[:, None] + self.links.beside, self.links.reverse[:, None])
        return _units(recorded, self.unit)

    def _saturation(self) -> Ints:
        """Units with which a segment keeps everything: [s, t]."""
        n = len(self.links)
        saturation: Ints = np.full((n + 1, n + 1), self.columns, np.int64)
        if self.save_everything:
            for s in reversed(range(n)):
                saturation[s, s + 1 :] = np.maximum(self._recorded[s, s + 1 :], self._need[s, 1 : n - s + 1])
                if self._inside:
                    saturation[s, s + 1] = self._inside[s].saturation
                rest = saturation[s, s + 2 :]
                np.maximum(rest, self._kept[s] + saturation[s + 1, s + 2 :], out=rest)
        return np.minimum(saturation, self.columns)

    def _fill(self, s: int, t: int) -> None:
        links, row = self.links, self._from[s][t - s - 1]
        low = min(int(self._need[s, t - s]), self.columns)
        high = max(low, int(self._all[s, t]))
        row[high:] = links.both[t] - links.both[s]
        if t == s + 1:
            row[low:high] = self._leaf(s, low, high)
        elif low < high:
            row[low:high] = self._split(s, t, low, high)
            if self.save_everything:
                self._keep(s, t, low, high)
        size = int(self._activation[s])
        if low + size < self.columns:
            np.add(row[low : self.columns - size], links.forward[s], out=self._to[t][s, low + size :])

    def _leaf(self, s: int, low: int, high: int) -> Floats | float:
        if self._inside:
            return self._inside[s].row[low:high]
        return float(self.links.both[s + 1] - self.links.both[s])

    def _split(self, s: int, t: int, low: int, high: int) -> Floats:
        """The best first checkpoint, for each amount of memory from low to high."""
        options = self._scratch[: t - s - 1, : high - low]
        np.add(self._from[s][: t - s - 1, low:high], self._to[t][s + 1 : t, low:high], out=options)
        if self.links.sweep[s, t - s - 1] + self.links.beside[t] > low * self.unit:
            sweep = self._swept(s, t)
            first = int(np.searchsorted(sweep, low, "right"))
            while first < len(sweep):
                options[first:, : sweep[first] - low] = np.inf
                first = int(np.searchsorted(sweep, sweep[first], "right"))
        best: Floats = options.min(axis=0)
        best -= self.links.forward[s]
        return best

    def _swept(self, s: int, t: int) -> Ints:
        """Units with which links s … k - 1 can be swept, for each k between s and t; never falling."""
        return _units(self.links.sweep[s, 1 : t - s] + self.links.beside[t], self.unit)

    def _keep(self, s: int, t: int, low: int, high: int) -> None:
        kept = int(self._kept[s])
        first = max(low, kept, int(self._recorded[s, t]))
        if first < high:
            cost = self._from[s + 1][t - s - 2, first - kept : high - kept] + (
                self.links.both[s + 1] - self.links.both[s]
            )
            part = self._from[s][t - s - 1, first:high]
            np.minimum(part, cost, out=part)

    def choose(self, s: int, t: int, free: int) -> int:
        least, column = self._least, self._column(free)
        at = np.arange(s + 1, t)
        after = np.minimum(self._column(free - self.links.activation[at]) + self._activation[at], self.columns - 1)
        left = self._from[s][: t - s - 1, min(column, self.columns - 1)] if column >= 0 else np.inf
        right = np.where(after >= 0, self._to[t][at, after] - self.links.forward[at], np.inf)
        rest = min(self._column(free - int(self.links.kept[s])), self.columns - 1)
        kept = self._from[s + 1][t - s - 2, rest] if rest >= 0 else np.inf
        return least.pick(
            s,
            t,
            free,
            np.minimum(left, least.cost[s, 1 : t - s]),
            np.minimum(right, least.cost[at, t - at]),
            min(kept, least.cost[s + 1, t - s - 1]),
        )

    def _column(self, free: _Size) -> _Size:
        return (free - self._origin) // self.unit


def _units(sizes: Ints, unit: int) -> Ints:
    """Sizes in whole units, rounded up."""
    return -(-sizes // unit)
