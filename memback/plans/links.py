"""A chain cut into links, which are runs of neighbouring stages, and the bytes and costs of each link.

A *segment* [s, t) runs from position s to position t, both between links. Its *need* is the least m such that the
segment can be reversed once m bytes are free for all that is live from then on, except the activation that the segment
starts from, the chain's input, and what is held further left. It includes dL/d(activation t), unless t ends the
chain (there, forward runs before that gradient exists), and the parameter gradients of every stage from t on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from memback.plans.simulate import Chain
from memback.plans.stage import Stage

__all__ = ["Figures", "Links"]

_NEVER = 2**61
"""Bytes that are never free: what can't be swept takes so many."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Figures:
    """A chain's sizes (bytes) and costs (ticks, see :func:`_ticks`) as arrays.

    Attributes, by stage: ``kept``, its output and saves; ``forward_workspace``; ``reverse``, what is live during its
    backward besides that; ``step``, during a forward that keeps nothing. By activation: ``activation``; ``beside``, the
    gradients that are live while a segment that ends there runs forward; ``forward`` and ``both``, the cost of all
    stages before it, forward alone and with backward.
    """

    def __init__(self, chain: Chain) -> None:
        stages = chain.stages
        self.activation: Ints = np.asarray(chain.activation_bytes, np.int64)
        gradient = np.asarray(chain.gradient_bytes, np.int64)
        owed = np.asarray(chain.parameter_gradient_bytes, np.int64)
        self.forward_workspace: Ints = np.asarray([stage.forward_workspace for stage in stages], np.int64)
        self.kept: Ints = self.activation[1:] + np.asarray([stage.saved_bytes for stage in stages], np.int64)
        backward_workspace = np.asarray([stage.backward_workspace for stage in stages], np.int64)
        self.reverse: Ints = gradient[1:] + gradient[:-1] + owed[:-1] + backward_workspace
        sweep_workspace = np.asarray([stage.workspace_of_sweep for stage in stages], np.int64)
        self.step: Ints = self.activation[:-1] + self.activation[1:] + sweep_workspace
        self.step[[not stage.sweeps for stage in stages]] = _NEVER
        self.beside: Ints = np.append(gradient[:-1], 0) + owed
        self.forward, self.both = _ticks(stages)
        sizes = (
            *(self.activation, self.kept, gradient, owed),
            *(self.forward_workspace, sweep_workspace, backward_workspace),
        )
        self.unit = int(np.gcd.reduce(np.concatenate(sizes))) or 1
        """The largest size, in bytes, of which every size is a multiple."""


class Links:
    """Sizes (bytes) and costs of the links between ``positions``, which are numbers of activations, in order.

    Attributes, by link k, from ``positions[k]`` to ``positions[k + 1]``:
        kept: all saves and outputs of the link.
        record: the most that is live while the link runs keeping everything, besides ``beside``.
        reverse: the most that is live while it is reversed, once all further right has been.
    By position k: ``activation``, ``beside``, ``forward`` and ``both``, as in :class:`Figures`.
    ``sweep[s, d]`` is the most that is live while links s … s + d - 1 run keeping nothing, besides ``beside``.
    """

    def __init__(self, figures: Figures, positions: Sequence[int]) -> None:
        self.positions = list(positions)
        at = np.asarray(positions)
        starts = at[:-1] - at[0]
        links = slice(at[0], at[-1])
        kept = figures.kept[links]
        held = np.cumsum(kept)
        held -= np.repeat((held - kept)[starts], np.diff(at))
        self.kept: Ints = np.add.reduceat(kept, starts)
        self.record: Ints = np.maximum.reduceat(held + figures.forward_workspace[links], starts)
        self.reverse: Ints = np.maximum.reduceat(held + figures.reverse[links], starts)
        self.activation: Ints = figures.activation[at]
        self.beside: Ints = figures.beside[at]
        self.forward: Floats = figures.forward[at]
        self.both: Floats = figures.both[at]
        first = figures.step[links].copy()
        first[starts] -= self.activation[:-1]  # a sweep does not count the activation that it starts from
        self.sweep = _sweeps(np.maximum.reduceat(figures.step[links], starts), np.maximum.reduceat(first, starts))

    def __len__(self) -> int:
        return len(self.positions) - 1


def _ticks(stages: Sequence[Stage]) -> tuple[Floats, Floats]:
    """Costs before each activation, in ticks: whole numbers, so that sums in float64 are exact in any order.

    A tick is 1 where costs are whole and no schedule's cost exceeds 2**53, otherwise the power of two with which none
    does. So equal costs compare equal, and the figures are off by 2**-53 of the costliest schedule at most for each
    run of a stage.
    """
    forward = [stage.forward_cost for stage in stages]
    backward = [stage.backward_cost for stage in stages]
    most = len(stages) * math.fsum(forward) + math.fsum(backward)
    exponent = 52 - math.frexp(most)[1] if most else 0
    if exponent >= 0 and all(float(cost).is_integer() for cost in (*forward, *backward)):
        exponent = 0
    ticks = np.rint(np.ldexp(np.asarray([forward, backward], np.float64), exponent))
    sums = np.cumsum(np.pad(ticks, ((0, 0), (1, 0))), axis=1)
    return sums[0], sums[0] + sums[1]


def _sweeps(inner: Ints, first: Ints) -> Ints:
    n = len(inner)
    sweep = np.zeros((n + 1, n + 1), np.int64)
    for s in range(n):
        sweep[s, 1] = first[s]
        sweep[s, 2 : n - s + 1] = inner[s + 1 :]
        np.maximum.accumulate(sweep[s, 1 : n - s + 1], out=sweep[s, 1 : n - s + 1])
    return sweep
