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

import numpy as np

from memback.plans.least import Least
from memback.plans.links import Floats, Ints
from memback.plans.segments import Choices

__all__ = ["Table"]


class Table(Choices):
    """C(s, t, m) for m = 0 … columns - 1, in units of ``unit`` bytes.

    The table is exact where sizes are whole units. Others are rounded up, those of stages that are kept so that the sum
    over neighbours is less than a unit off. Columns below a segment's least need are infinite, and those that keep
    everything cost the same: only what is in between is computed.
    """

    def __init__(self, least: Least, unit: int, columns: int, leaves: Sequence[Table] = ()) -> None:
        links = least.links
        kept = np.diff(_units(np.concatenate(([0], np.cumsum(links.kept))), unit))
        super().__init__(links, _units(links.activation, unit), kept, least.save_everything, leaves)
        self.unit = unit
        self.columns = columns
        self._inside = leaves
        n = len(links)
        self._least = _units(least.need, unit)
        self._recorded = self._recording()
        self._all = self._saturation()
        self._from = [np.empty((n - s, columns)) for s in range(n)]
        """C(s, s + 1 …, m)"""
        self._to = [np.empty((t, columns)) for t in range(n + 1)]
        """C(0 …, t, m - x) + F(0, …): what follows a checkpoint at 0 …"""
        self._scratch = np.empty((n, columns))
        for s in reversed(range(n)):
            for t in range(s + 1, n + 1):
                self._fill(s, t)

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
                saturation[s, s + 1 :] = np.maximum(self._recorded[s, s + 1 :], self._least[s, 1 : n - s + 1])
                if self._inside:
                    saturation[s, s + 1] = self._inside[s].saturation
                rest = saturation[s, s + 2 :]
                np.maximum(rest, self.kept[s] + saturation[s + 1, s + 2 :], out=rest)
        return np.minimum(saturation, self.columns)

    def _fill(self, s: int, t: int) -> None:
        links, row = self.links, self._from[s][t - s - 1]
        low = min(int(self._least[s, t - s]), self.columns)
        high = max(low, int(self._all[s, t]))
        row[:low] = np.inf
        row[high:] = links.both[t] - links.both[s]
        if t == s + 1:
            row[low:high] = self._leaf(s, low, high)
        elif low < high:
            row[low:high] = self._split(s, t, low, high)
            if self.save_everything:
                self._keep(s, t, low, high)
        size = min(int(self.activation[s]), self.columns)
        after = self._to[t][s]
        after[:size] = np.inf
        np.add(row[: self.columns - size], links.forward[s], out=after[size:])

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
        kept = int(self.kept[s])
        first = max(low, kept, int(self._recorded[s, t]))
        if first < high:
            cost = self._from[s + 1][t - s - 2, first - kept : high - kept] + (
                self.links.both[s + 1] - self.links.both[s]
            )
            part = self._from[s][t - s - 1, first:high]
            np.minimum(part, cost, out=part)

    def choose(self, s: int, t: int, free: int) -> int:
        options = self._from[s][: t - s - 1, free] + self._to[t][s + 1 : t, free] - self.links.forward[s]
        options[self._swept(s, t) > free] = np.inf
        best = int(np.argmin(options))
        if self.save_everything and free >= max(self.kept[s], int(self._recorded[s, t])):
            kept = self._from[s + 1][t - s - 2, free - self.kept[s]] + (self.links.both[s + 1] - self.links.both[s])
            if kept <= options[best]:
                return s
        return s + 1 + best


def _units(sizes: Ints, unit: int) -> Ints:
    """Sizes in whole units, rounded up."""
    return -(-sizes // unit)
