"""Adding gradients up: in place, where nothing else refers to the sum so far."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from memback.engine.arrays import is_whole, is_writeable

__all__ = ["SOLE", "add"]


def _references_of_a_sole_local() -> int:
    alone = np.empty(0)
    return sys.getrefcount(alone)


SOLE = _references_of_a_sole_local()
"""What ``sys.getrefcount`` says of an array that nothing but one local variable refers to."""


def _references(array: Any) -> tuple[int, int]:
    """References to an array, and to its base if it is a view."""
    base = array.base
    return sys.getrefcount(array), 0 if base is None else sys.getrefcount(base)


def _sole_references() -> frozenset[tuple[int, int]]:
    owner, view = np.empty((1, 1)), np.empty((1, 1)).reshape(1)
    return frozenset((_references(owner), _references(view)))


_UNSEEN = _sole_references()


def add(mine: list[Any], other: Any) -> Any:
    """mine[0] + other, written into mine[0] where nothing else refers to that array."""
    old = mine.pop()
    if (
        _references(old) in _UNSEEN
        and is_whole(old)
        and is_writeable(old)
        and old.dtype == other.dtype
        and old.shape == other.shape != ()  # NumPy gives scalars, not arrays, for those
    ):
        np.add(old, other, out=old)
        return old
    return np.add(old, other)
