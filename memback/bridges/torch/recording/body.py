"""What is run again with what: blocks, and segments of them under ``torch.utils.checkpoint``, one within the other.

A *body* is a nested tuple of blocks' numbers in order: a number is a block that keeps what its backward needs, a tuple
in it a segment that keeps its input alone and is run again, as a body of its own, when backward comes to its end. So
``(0, (1, 2, 3), 4)`` keeps blocks 0 and 4, and ``((0, (1, 2), 3), 4)`` runs 0 … 3 again and then, within that, 1 and 2.

These are the persistent schedules of :mod:`memback.plans.chain`, one to one: a forward that keeps a stage's input and
sweeps on to the next checkpoint is a segment, one that keeps everything a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from typing import TypeAlias

from memback.plans.actions import Action, Backward, Forward, Keep
from memback.plans.segments import record, reverse, swept

__all__ = ["Body", "actions_of", "blocks_in", "body_of", "every_body", "grouped", "runs_again", "segments_in"]

Body: TypeAlias = "tuple[int | Body, ...]"


def blocks_in(body: Body) -> Iterator[int]:
    """The numbers of a body's blocks, in order."""
    for item in body:
        if isinstance(item, int):
            yield item
        else:
            yield from blocks_in(item)


def segments_in(body: Body) -> Iterator[Body]:
    """Every segment of a body, those within others too."""
    for item in body:
        if not isinstance(item, int):
            yield item
            yield from segments_in(item)


def runs_again(body: Body) -> Counter[int]:
    """How often each block is run again."""
    return Counter(block for segment in segments_in(body) for block in blocks_in(segment))


def body_of(actions: Sequence[Action]) -> Body:
    """A persistent schedule of a chain as a body over its stages."""
    at = 0

    def items(stop: int) -> list[int | Body]:
        """What runs from here to ``stop``, and is reversed."""
        nonlocal at
        found: list[int | Body] = []
        kept: list[int] = []
        while not kept or kept[-1] + 1 < stop:
            match actions[at]:
                case Forward(stage, Keep.EVERYTHING):
                    at += 1
                    kept.append(stage)
                    found.append(stage)
                case Forward(_, Keep.INPUT):
                    at = next(i for i in range(at + 1, len(actions)) if not _sweeps_on(actions[i]))
                    checkpoint = actions[at].stage
                    right = items(stop)
                    found += [tuple(items(checkpoint)), *right]
                    break
                case action:
                    raise AssertionError(f"a persistent schedule has no {action} here")
        for stage in reversed(kept):
            if actions[at] != Backward(stage):
                raise AssertionError(f"stage {stage} is not reversed after those behind it")
            at += 1
        return found

    return tuple(items(1 + max(action.stage for action in actions)))


def _sweeps_on(action: Action) -> bool:
    return isinstance(action, Forward) and action.keep is Keep.NOTHING


def actions_of(body: Body) -> Iterator[Action]:
    """The schedule that a body carries out."""
    for item in body:
        blocks = list(blocks_in((item,)))
        yield from record(item, item + 1) if isinstance(item, int) else swept(blocks[0], blocks[-1] + 1)
    for item in reversed(body):
        yield from reverse(item, item + 1) if isinstance(item, int) else actions_of(item)


def grouped(body: Body, joined: Callable[[int, int], bool]) -> Body:
    """A body with each segment cut wherever two neighbours in it are not ``joined`` (it is given their numbers)."""
    result: list[int | Body] = []
    for item in body:
        if isinstance(item, int):
            result.append(item)
            continue
        parts: list[list[int | Body]] = [[]]
        for part in grouped(item, joined):
            before = last_block(parts[-1])
            if before is not None and not joined(before, next(blocks_in((part,)))):
                parts.append([])
            parts[-1].append(part)
        result += [tuple(part) for part in parts]
    return tuple(result)


def last_block(items: Sequence[int | Body]) -> int | None:
    """The last block of a body, or None of an empty one."""
    return next(iter(list(blocks_in(tuple(items)))[-1:]), None)


def every_body(joined: Sequence[bool], fixed: Sequence[bool], most: int) -> list[Body] | None:
    """All bodies over ``len(fixed)`` blocks, or None where there are more than ``most``.

    Args:
        joined: whether each block can be in a segment with the one before it (of the first it does not matter).
        fixed: whether each block is never run again.
        most: of bodies.
    """

    @cache
    def bodies(start: int, stop: int) -> Sequence[Body] | None:
        """Those over blocks from ``start`` on, but not those that are a single segment."""
        if start == stop:
            return [()]
        found: list[Body] = []
        for end in range(start + 1, stop + 1):
            firsts: Sequence[int | Body] | None = segments(start, end) if end < stop else ()
            rest = bodies_and_segment(end, stop)
            if firsts is None or rest is None:
                return None
            firsts = [*([start] if end == start + 1 else ()), *firsts]
            if len(found) + len(firsts) * len(rest) > most:
                return None
            found += [(first, *others) for first in firsts for others in rest]
        return found

    def bodies_and_segment(start: int, stop: int) -> Sequence[Body] | None:
        open_, whole = bodies(start, stop), segments(start, stop) if start < stop else ()
        return None if open_ is None or whole is None else [*open_, *((segment,) for segment in whole)]

    def segments(start: int, stop: int) -> Sequence[Body] | None:
        """Those over exactly these blocks; a last one that is a segment within it would be run again at once."""
        if any(fixed[start:stop]) or not all(joined[start + 1 : stop]):
            return ()
        inside = bodies(start, stop)
        return None if inside is None else [body for body in inside if isinstance(body[-1], int)]

    found = bodies_and_segment(0, len(fixed))
    return None if found is None or len(found) > most else list(found)


def shown(body: Body) -> str:
    """A body in few characters: ``0–3 (4–7) (8 (9 10) 11)``."""
    words: list[str] = []
    for whole, items in groupby(body, key=lambda item: isinstance(item, int)):
        if whole:
            numbers = list(items)
            words.append(f"{numbers[0]}–{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
        else:
            words += [f"({shown(item)})" for item in items if not isinstance(item, int)]
    return " ".join(words)
