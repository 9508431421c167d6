"""Unfold the choices of a planner, segment by segment, into the actions of a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from memback.plans.actions import Action, Backward, Forward, Keep
from memback.plans.links import Links

__all__ = [
    "Choices",
    "Part",
    "Segment",
    "Segmenter",
    "inputs_alone",
    "record",
    "recorded",
    "reverse",
    "swept",
    "unfold",
]


class Segmenter(Protocol):
    """Splits a segment into actions and shorter segments."""

    def parts(self, s: int, t: int, free: int) -> Iterator[Part]:
        """What the segment from s to t consists of, in order, where ``free`` is the memory that is left for it."""


class Segment(NamedTuple):
    """A segment that is still to be split."""

    by: Segmenter
    start: int
    stop: int
    free: int


Part: TypeAlias = Action | Segment


def unfold(segment: Segment) -> list[Action]:
    """The actions of a segment."""
    actions: list[Action] = []
    parts: list[Part] = [segment]
    while parts:
        part = parts.pop()
        if isinstance(part, Segment):
            parts += reversed(list(part.by.parts(part.start, part.stop, part.free)))
        else:
            actions.append(part)
    return actions


class Choices:
    """A table over the segments of a chain's links."""

    def __init__(self, links: Links, save_everything: bool, leaves: Sequence[Choices] = ()) -> None:
        self.links = links
        self.save_everything = save_everything
        self.leaves = leaves
        """What splits each link of several stages; without them, a link is recorded as a whole."""

    def choose(self, s: int, t: int, free: int) -> int:
        """The first checkpoint after s of the best schedule with ``free`` bytes; s itself where link s is kept."""
        raise NotImplementedError

    def parts(self, s: int, t: int, free: int) -> Iterator[Part]:
        start, next_ = self.links.positions[s], self.links.positions[s + 1]
        if t == s + 1:
            if self.leaves:
                yield Segment(self.leaves[s], 0, len(self.leaves[s].links), free)
            else:
                yield from recorded(start, next_)
            return
        k = self.choose(s, t, free)
        if k == s:
            yield from record(start, next_)
            yield Segment(self, s + 1, t, free - int(self.links.kept[s]))
            yield from reverse(start, next_)
        else:
            yield from swept(start, self.links.positions[k])
            yield Segment(self, k, t, free - int(self.links.activation[k]))
            yield Segment(self, s, k, free)


def swept(start: int, stop: int) -> Iterator[Action]:
    """Run stages start … stop - 1 forward, keeping the input of the first alone."""
    yield Forward(start, Keep.INPUT)
    for stage in range(start + 1, stop):
        yield Forward(stage, Keep.NOTHING)


def record(start: int, stop: int) -> Iterator[Action]:
    """Run stages start … stop - 1 forward, keeping everything."""
    for stage in range(start, stop):
        yield Forward(stage, Keep.EVERYTHING)


def reverse(start: int, stop: int) -> Iterator[Action]:
    """Reverse stages start … stop - 1, the last one first."""
    for stage in reversed(range(start, stop)):
        yield Backward(stage)


def recorded(start: int, stop: int) -> Iterator[Action]:
    """Run stages start … stop - 1 forward, keeping everything, and reverse them."""
    yield from record(start, stop)
    yield from reverse(start, stop)


def inputs_alone(stages: int) -> Iterator[Action]:
    """Run a chain keeping every stage's input alone; record each stage again just before it is reversed."""
    for stage in range(stages - 1):
        yield Forward(stage, Keep.INPUT)
    for stage in reversed(range(stages)):
        yield from recorded(stage, stage + 1)
