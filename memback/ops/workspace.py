"""Keeping an op's workspace small: work in pieces that fit into the processor's cache, in a type wide enough."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from memback.shape_array import ShapeArray

__all__ = ["PIECE", "parts", "pieces", "slices", "wide"]

T = TypeVar("T")

PIECE = 2**16
"""Elements worked on at a time: 256 KiB of float32, of which a few fit into a core's second cache."""


def wide(dtype: Any) -> Any:
    """The type in which sums of ``dtype`` are accumulated: float32 for float16 and bfloat16, otherwise itself."""
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def slices(n: int, step: int) -> Iterator[slice]:
    """The range 0..n in pieces of ``step``; the last one may be shorter."""
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def pieces(steps: Iterable[T], like: Any) -> Iterator[T]:
    """The steps of a loop of which none takes more memory than the first, and none keeps any for the next.

    Without memory (``like`` is a :class:`~memback.shape_array.ShapeArray`) the first stands for all of them.
    """
    return islice(steps, 1) if isinstance(like, ShapeArray) else iter(steps)


def parts(x: Any) -> Iterator[Any]:
    """Indices that cut ``x`` along its first dimension into parts of about :data:`PIECE` elements, or one step each."""
    if x.size <= PIECE:
        return iter((...,))
    length = x.shape[0]
    return pieces(slices(length, max(1, PIECE * length // x.size)), like=x)
