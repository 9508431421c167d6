"""A step as its recorded calls: what each reads and makes, what backward needs of it when, and what all else takes.

Time is counted in *moments*: the number of births and deaths of buffers so far, in a run in which everything that
backward needs is kept. A need of backward's at moment ``t`` comes after the birth or death with number ``t - 1``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["RecordedCalls", "Value"]


@dataclass(frozen=True, slots=True)
class Value:
    """A buffer that a call makes, or what it has become when a call wrote to it.

    Attributes:
        call: the number of the call.
        bytes: its size.
        born: the moment of its birth.
        alone: the moment until which it lives if nothing keeps it for backward; infinite if somebody else does.
        freed: the moment at which it dies in the recorded run.
        needs: the moments at which backward asks for it, in order; none of what backward has no need of.
        becomes: the value that a later call makes of the same buffer, if any: this one can't be kept then.
    """

    call: int
    bytes: int
    born: float
    alone: float
    freed: float
    needs: tuple[float, ...] = ()
    becomes: int | None = None


@dataclass(frozen=True)
class RecordedCalls:
    """The calls of a region, the values that they make, and what lives besides.

    Attributes:
        costs: of running each call once more, in seconds.
        products: whether each multiplies matrices, convolves or attends.
        reads: the values that each reads, by their numbers.
        makes: those that it makes.
        replayable: whether it can be run again.
        values: all of them.
        rest: by moment, the bytes of all that lives besides these values.
        begins: the moment at which each call begins, and that at which the region's forward ends.
        kinds: what each call is, for telling identical parts of a step: equal for equal calls.
    """

    costs: Sequence[float]
    products: Sequence[bool]
    reads: Sequence[tuple[int, ...]]
    makes: Sequence[tuple[int, ...]]
    replayable: Sequence[bool]
    values: Sequence[Value]
    rest: np.ndarray
    begins: Sequence[float]
    kinds: Sequence[object]

    def __len__(self) -> int:
        return len(self.costs)

    @cached_property
    def readers(self) -> list[list[int]]:
        """By value, the calls that read it."""
        found: list[list[int]] = [[] for _ in self.values]
        for call, values in enumerate(self.reads):
            for value in dict.fromkeys(values):
                found[value].append(call)
        return found

    def recomputed(self, dropped: Collection[int]) -> set[int]:
        """Of these calls, those that backward has to run again: what it needs, and what that is made from.

        One that reads a value which was written to later needs the call that made that value.
        """
        possible: set[int] = set()
        for call in sorted(dropped):
            makers = (self.values[v].call for v in self.reads[call] if self.values[v].becomes is not None)
            if all(maker in possible for maker in makers):
                possible.add(call)
        needed: set[int] = set()
        for call in sorted(possible, reverse=True):
            for number in self.makes[call]:
                if self.values[number].needs or not needed.isdisjoint(self.readers[number]):
                    needed.add(call)
                    break
        return needed

    def cost(self, calls: Collection[int]) -> float:
        """Seconds of running these calls once more."""
        return sum(self.costs[call] for call in sorted(calls))
