"""NumPy's loops: the types in which they work, and the buffers through which they pass some operands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from memback.dry.layout import broadcast_strides, elementwise_result, order_of, ranks
from memback.dry.memory import for_a_moment

__all__ = ["Loop", "loop_of", "take_buffers"]


class Loop(NamedTuple):
    """The types in which a universal function works on operands of given types."""

    inputs: tuple[np.dtype[Any], ...]
    outputs: tuple[np.dtype[Any], ...]
    converts: bool
    """Whether an input is of another type."""


@lru_cache(maxsize=4096)
def loop_of(ufunc: np.ufunc, kinds: tuple[Any, ...], dtype: Any = None) -> Loop:
    """The types in which a universal function works on operands, given what decides about them (:func:`kind_of`)."""
    operands = tuple(np.dtype(bool) if kind is bool else kind for kind in kinds)
    asked: Any = {} if dtype is None else {"signature": (None,) * ufunc.nin + (np.dtype(dtype),) * ufunc.nout}
    found = ufunc.resolve_dtypes((*operands, *(None,) * ufunc.nout), **asked)
    inputs, outputs = found[: ufunc.nin], found[ufunc.nin :]
    pairs = zip(operands, inputs, strict=True)
    return Loop(inputs, outputs, any(isinstance(kind, np.dtype) and kind != wanted for kind, wanted in pairs))


class _Operand(NamedTuple):
    """An operand of a loop: how it lies in memory, in elements of which sizes, and what the loop does with it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    """Of the loop's type."""
    converted: bool
    """Whether the operand is of another type."""
    reduced: bool
    """Whether the loop adds up in it: it has one element where others have many."""


def take_buffers(
    operands: Sequence[Any], wanted: Sequence[np.dtype[Any]], shape: tuple[int, ...], reduced: Any = None
) -> None:
    """Count the buffers through which NumPy passes some operands of a loop over ``shape``, ``wanted`` their types.

    The operand ``reduced``, if there is one, is what the loop reduces the others to.
    """
    layouts = tuple(
        [
            _Operand(o.shape, o.strides, dtype.itemsize, o.dtype != dtype, o is reduced)
            for o, dtype in zip(operands, wanted, strict=True)
            if getattr(o, "size", 1) > 1
        ]
    )
    for_a_moment(_buffer_bytes(layouts, shape))


@lru_cache(maxsize=4096)
def _buffer_bytes(operands: tuple[_Operand, ...], shape: tuple[int, ...]) -> int:
    """Bytes of those buffers (as of NumPy 2.3; older versions have fewer).

    An operand has one if it is converted, or if its elements do not lie at one distance from each other for as long as
    a buffer is (a broadcast row, a part of each row). A buffer is as long as some inner dimensions of the loop, of at
    most ``np.getbufsize()`` elements: those for which (1 + buffers) / length is the least, the longest of equals. A
    reduction's loop goes on over one more dimension than its buffers, if that is where the result begins to be
    repeated, or ceases to be; there, an operand needs no buffer for the jumps between its inner dimensions.
    """
    if not operands:
        return 0
    strides = [broadcast_strides(shape, o.shape, o.strides) for o in operands]
    order = order_of(elementwise_result, tuple((tuple(min(n, 2) for n in shape), ranks(s)) for s in strides))
    dimensions = _joined(shape, strides, order)
    if not dimensions:
        return 0
    most = np.getbufsize()
    cost = 1 + sum(o.converted for o in operands)
    even = [1] * len(operands)  # inner dimensions over which each operand's elements lie at one distance
    turns = [0] * len(operands)  # the dimension at which each begins or ceases to be repeated
    size = dimensions[0][0]
    best, best_cost, best_size, best_core = 0, cost, size, 1
    for d, ((inner, before), (outer, after)) in enumerate(pairwise(dimensions), 1):
        if any(turns) or (size >= most and cost > 1):
            break
        for i, operand in enumerate(operands):
            if even[i] == d:
                if inner * before[i] == after[i]:
                    even[i] += 1
                    continue
                cost += not operand.converted
            if operand.reduced and 0 in (before[i], after[i]):
                turns[i] = d
        core, size = size, size * outer
        if cost * best_size <= best_cost * (min(size, most) if cost > 1 else size):
            best, best_cost, best_size, best_core = d, cost, size, core
    repeats = best > 0 and best in turns
    buffered = 0
    for i, operand in enumerate(operands):
        jumps = repeats and (
            turns[i] == best
            or (even[i] == best and not operand.converted)
            or (dimensions[best][1][i] == 0 and even[i] <= best)
        )
        if operand.converted or even[i] + jumps <= best:
            buffered += operand.itemsize
    return buffered * (best_size if best_size <= most else best_core * (most // best_core))


def _joined(
    shape: tuple[int, ...], strides: Sequence[tuple[int, ...]], order: tuple[int, ...]
) -> list[tuple[int, tuple[int, ...]]]:
    """A loop's dimensions from the inside out, each with every operand's stride; those that go on alike are one."""
    joined: list[tuple[int, tuple[int, ...]]] = []
    for d in reversed(order):
        if shape[d] == 1:
            continue
        own = tuple([s[d] for s in strides])
        if joined and all(joined[-1][0] * s == t for s, t in zip(joined[-1][1], own, strict=True)):
            joined[-1] = (joined[-1][0] * shape[d], joined[-1][1])
        else:
            joined.append((shape[d], own))
    return joined
