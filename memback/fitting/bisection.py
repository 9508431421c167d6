"""The largest number for which something holds, by doubling and bisection."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["largest"]


def largest(holds: Callable[[int], bool], start: int, most: int) -> tuple[int, int | None]:
    """Find the largest number from 1 to ``most`` for which ``holds``, if it holds for all smaller ones.

    Gives that number, 0 where there is none, and the next one, for which it has been tried and does not hold; None
    where it holds for ``most``. ``start`` is tried first.
    """
    low, high = 0, min(max(start, 1), most)
    while holds(high):
        low = high
        if high == most:
            return low, None
        high = min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high
