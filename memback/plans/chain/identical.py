"""The cheapest persistent schedules of a chain of stages alike: what a segment costs depends on its length alone.

Keeping everything of a stage and then running d stages to the next checkpoint costs no less than running d stages to a
checkpoint and keeping everything of the stage there, which leaves the segment left of the checkpoint more memory. So a
segment of L stages keeps everything, or begins with a checkpoint. Memory is therefore only ever taken in steps of one
activation x, and the table

    X(L, m) = 0 where all of L stages can be kept, otherwise the least over d of  d + X(d, m) + X(L - d, m - x)

of forwards besides the one that each reversal begins with is exact, whatever the sizes. There is one for segments
inside the chain, one for those that end it (their gradient is not there yet while they run forward) and one for those
that begin it (the gradient that they end with has the size of the chain's input).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from memback.plans.segments import Part, Segment, recorded, swept
from memback.plans.simulate import Chain

__all__ = ["Identical", "applies", "least_need"]

_NEVER = 2**29
_Counts = NDArray[np.int32]
_Ints = NDArray[np.int64]


def applies(chain: Chain) -> bool:
    """Whether all stages are alike and no gradients pile up from stage to stage."""
    one = chain.stages[0]
    simple = one.sweeps and one.sweep_workspace is None and one.parameter_gradient_bytes == 0
    return simple and len(set(chain.stages)) == 1


class _Needs:
    """What is live in a segment besides the activation that it starts from (bytes), by where in the chain it is."""

    def __init__(self, chain: Chain) -> None:
        stage = chain.stages[0]
        self.activation = stage.output_bytes
        self.kept = stage.output_bytes + stage.saved_bytes
        self.gradient = stage.output_gradient_bytes
        self.workspace = stage.forward_workspace
        self._reverse = self.gradient + stage.backward_workspace
        self._input_bytes = chain.input_bytes

    def sweep(self, stages: int, last: bool) -> int:
        """While so many stages run keeping nothing: one, or more than one."""
        return self.activation * min(stages, 2) + self.workspace + (0 if last else self.gradient)

    def everything(self, stages: int, first: bool, last: bool) -> int:
        """While so many stages are run keeping everything, and reversed."""
        record = stages * self.kept + self.workspace + (0 if last else self.gradient)
        begin = self.kept + self._reverse + self._input_bytes if first else 0
        inside = stages * self.kept + self._reverse + self.gradient if stages > 1 or not first else 0
        return max(record, begin, inside)

    def capacity(self, free: _Ints, most: int, first: bool, last: bool) -> _Ints:
        """How many stages, up to ``most``, can be kept in each amount of free memory."""
        needs = np.asarray([self.everything(stages, first, last) for stages in range(1, most + 1)])
        return np.searchsorted(np.maximum.accumulate(needs), free, "right")


def least_need(chain: Chain, save_everything: bool) -> int:
    """The least memory (bytes) that reverses the chain, besides its input."""
    needs, n = _Needs(chain), len(chain)
    most = n if save_everything else 1

    def least(left: _Ints, right: _Ints, length: int, first: bool, last: bool) -> int:
        kept = needs.everything(length, first, last) if length <= most else None
        if length == 1:
            return needs.everything(1, first, last)
        sweeps = np.full(length - 1, needs.sweep(2, last))
        sweeps[0] = needs.sweep(1, last)
        split = np.maximum(np.maximum(left[1:length], right[length - 1 : 0 : -1] + needs.activation), sweeps).min()
        return int(split) if kept is None else min(int(split), kept)

    inside, ending, beginning = np.zeros((3, n + 1), np.int64)
    for length in range(1, n):
        inside[length] = least(inside, inside, length, False, False)
        ending[length] = least(inside, ending, length, False, True)
        beginning[length] = least(beginning, inside, length, True, False)
    return least(beginning, ending, n, True, True)


class Identical:
    """X by length and by activations held, of a chain to which this applies.

    Column i stands for ``free`` bytes, besides the chain's input, less i activations. ``extra[i]``, for the first
    ``budgets`` columns, is how often a stage of the whole chain is run again with that much memory; ``never`` where it
    can't be reversed.
    """

    never = _NEVER

    def __init__(self, chain: Chain, free: int, save_everything: bool, budgets: int = 1) -> None:
        self._needs, self._n = _Needs(chain), len(chain)
        x = self._needs.activation
        self._step = 1 if x else 0
        self.free: _Ints = free - x * np.arange(min(self._n + budgets - 1, free // x) + 1 if x else 1)
        self._budgets = min(budgets, len(self.free))
        most = self._n if save_everything else 1
        self._capacity = {
            (first, last): self._needs.capacity(self.free, most, first, last)
            for first in (False, True)
            for last in (False, True)
        }
        self._swept = {
            (stages, last): int(np.count_nonzero(self.free >= self._needs.sweep(stages, last)))
            for stages in (1, 2)
            for last in (False, True)
        }
        self._fill()

    def _fill(self) -> None:
        n, columns = self._n, len(self.free)
        self._inside, self._ending, self._left, self._beginning = (
            np.full((n + 1, columns + self._step), _NEVER, np.int32) for _ in range(4)
        )
        self._scratch = np.empty((n, columns), np.int32)
        for length in range(1, n):
            width = min(columns, n - length + self._budgets)
            self._inside[length, :width] = self._row(self._left, self._inside, length, width, False, False)
            self._ending[length, :width] = self._row(self._left, self._ending, length, width, False, True)
            self._left[length, :width] = self._inside[length, :width] + length
            first = self._row(self._beginning, self._inside, length, self._budgets, True, False)
            self._beginning[length, : self._budgets] = first + length
        self.extra = self._row(self._beginning, self._ending, n, self._budgets, True, True)

    def _row(self, left: _Counts, right: _Counts, length: int, width: int, first: bool, last: bool) -> _Counts:
        """X of a length for the first columns; ``left`` includes the run to the checkpoint."""
        row = np.full(width, _NEVER, np.int32)
        kept = int(np.count_nonzero(self._capacity[first, last][:width] >= length))
        row[:kept] = 0
        if length > 1:
            end = max(kept, min(width, self._swept[1, last]))
            middle = min(max(kept, self._swept[2, last]), end)
            options = self._scratch[: length - 1, : middle - kept]
            after = right[length - 1 : 0 : -1, kept + self._step : middle + self._step]
            np.add(left[1:length, kept:middle], after, out=options)
            options.min(axis=0, out=row[kept:middle])
            row[middle:end] = left[1, middle:end] + right[length - 1, middle + self._step : end + self._step]
        return np.minimum(row, _NEVER, out=row)

    def parts(self, s: int, t: int, column: int) -> Iterator[Part]:
        """What the segment from s to t consists of with the memory of a column."""
        first, last, length = s == 0, t == self._n, t - s
        if length <= self._capacity[first, last][column]:
            yield from recorded(s, t)
            return
        left = self._beginning if first else self._left
        right = self._ending if last else self._inside
        options = left[1:length, column] + right[length - 1 : 0 : -1, column + self._step]
        k = s + 1 + (int(options.argmin()) if column < self._swept[2, last] else 0)
        yield from swept(s, k)
        yield Segment(self, k, t, column + self._step)
        yield Segment(self, s, k, column)
