"""A program: what is kept of a region's calls, and what is recomputed before which reversal."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

__all__ = ["Instruction", "Program", "Recompute", "Release", "Reverse"]


class Recompute(NamedTuple):
    """Run calls from ``start`` to ``stop`` (exclusive) again, as far as anything of the following needs them.

    ``outputs`` are stored afterwards, and so are the residuals of ``saves``; calls in ``fill`` keep what their backward
    needs.
    """

    start: int
    stop: int
    outputs: frozenset[int] = frozenset()
    fill: Collection[int] = ()
    saves: frozenset[int] = frozenset()


class Release(NamedTuple):
    """Store the outputs of these calls, and the residuals of those, no longer."""

    outputs: Collection[int] = ()
    saves: Collection[int] = ()


class Reverse(NamedTuple):
    """Backward of the calls from ``start`` to ``stop`` (exclusive). What they still lack is filled in before."""

    start: int
    stop: int


Instruction: TypeAlias = Recompute | Release | Reverse


@dataclass(frozen=True)
class Program:
    """What is kept of a region in forward, and what is done during backward.

    Calls are named by their number in the region.

    Attributes:
        whole: calls that keep from the start what their backward needs. All others are lean.
        outputs: calls whose outputs are stored in forward.
        saves: lean calls whose residuals are stored in forward.
        recipes: calls that can be run again.
        again: calls that are run again, as reports say it.
        steps: of backward, in order. Each call belongs to one :class:`Reverse`.
    """

    whole: Container[int]
    outputs: frozenset[int]
    saves: frozenset[int]
    recipes: Container[int]
    again: Container[int]
    steps: tuple[Instruction, ...]

    @cached_property
    def reversals(self) -> Mapping[int, int]:
        """By call, the index of the step that reverses it."""
        return {
            number: index
            for index, step in enumerate(self.steps)
            if isinstance(step, Reverse)
            for number in range(step.start, step.stop)
        }
