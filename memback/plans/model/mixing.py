"""Stages of one chain kept in different ways: from one that keeps little, step by step to one that keeps all.

Each stage has, for each choice of what to keep of it, bytes and the cost of its backward. The corners of the lower
convex hull of these are its steps; taken in the order of the cost that a byte saves, over all stages, any number of
first steps is the best use of the bytes that they take (Everett 1963, "Generalized Lagrange multiplier method").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from memback.plans.actions import Action
from memback.plans.model.measure import Choice
from memback.plans.simulate import simulate

__all__ = ["Mixing"]


class _Step(NamedTuple):
    """Keeping a stage as another choice does: the cost saved by each byte that it takes."""

    worth: float
    stage: int
    choice: int


class Mixing:
    """The mixtures that begin with one of several choices, each of which keeps less than those before it.

    Args:
        choices: of which the first keeps everything.
        start: the number of the choice to begin with.
    """

    def __init__(self, choices: Sequence[Choice], start: int) -> None:
        self.choices = choices
        self.start = start
        steps = [step for stage in range(len(choices[start].stages)) for step in self._steps(stage)]
        self.steps = sorted(steps, key=lambda step: -step.worth)

    def _steps(self, stage: int) -> Iterator[_Step]:
        """A stage's steps; each saves less cost a byte than the one before."""
        at = self.start
        while at:
            size, cost = self._figures(at, stage)
            better = [
                _Step((cost - dearer) / (larger - size), stage, number)
                for number in range(at)
                for larger, dearer in [self._figures(number, stage)]
                if larger > size and dearer < cost
            ]
            if not better:
                return
            step = max(better)
            yield step
            at = step.choice

    def _figures(self, choice: int, stage: int) -> tuple[int, float]:
        figures = self.choices[choice].stages[stage]
        return figures.saved_bytes, figures.backward_cost

    def mixed(self, count: int) -> Choice:
        """The choice after so many steps."""
        chosen = [self.start] * len(self.choices[self.start].stages)
        for step in self.steps[:count]:
            chosen[step.stage] = step.choice
        kept = tuple(self.choices[number].kept[stage] for stage, number in enumerate(chosen))
        stages = tuple(self.choices[number].stages[stage] for stage, number in enumerate(chosen))
        return Choice(kept, stages)

    def most(self, actions: Sequence[Action], room: int) -> Choice:
        """The mixture of most steps whose peak under a plan's actions is at most ``room`` bytes, or the first."""

        def exceeds(count: int) -> bool:
            return simulate(self.mixed(count).stages, actions)[1] > room

        return self.mixed(max(bisect_left(range(len(self.steps) + 1), True, key=exceeds) - 1, 0))

    def curve(self, actions: Sequence[Action], points: int) -> Iterator[tuple[int, float]]:
        """(peak in bytes, cost) of a plan's actions, for so many mixtures evenly from the first to the last."""
        for number in range(points + 1):
            cost, peak = simulate(self.mixed(number * len(self.steps) // points).stages, actions)[:2]
            yield peak, cost
