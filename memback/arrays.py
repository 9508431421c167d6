"""Arrays and the memory under them: which root buffer an array lives in, and how large that is.

A view, slice, reshape or transpose has the identity of its root and costs nothing, but keeps the whole root
alive; so memory is always counted in roots.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np

from memback.shape_array import ShapeArray

__all__ = [
    "Array",
    "Buffer",
    "argument_like",
    "buffer_bytes",
    "distinct_bytes",
    "dtype_name",
    "forgotten",
    "is_array",
    "is_whole",
    "is_writeable",
    "leaves",
    "root",
    "stand_in",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""What ops are written in. On a dry run it is a :class:`ShapeArray`, which answers to the same functions."""

Buffer: TypeAlias = Array
"""A root allocation, named by the array that owns it."""


def is_array(value: object) -> bool:
    """Whether ``value`` is an array that holds memory (or stands for one on a dry run)."""
    return isinstance(value, (np.ndarray, ShapeArray))


def root(array: Array) -> Buffer:
    """The array that owns the allocation which ``array`` keeps alive: ``.base`` followed to the end."""
    base = array.base
    while base is not None:
        if is_array(base):
            array = base
        elif not is_array(getattr(base, "base", None)):  # as_strided puts an object in between that only refers on
            break
        base = base.base
    return array


def is_whole(array: Any) -> bool:
    """Whether an array is its buffer, or a view that has each of the buffer's elements once, row by row."""
    if array.base is None:
        return True
    dense = array.contiguous if isinstance(array, ShapeArray) else array.flags.c_contiguous
    return bool(dense and array.nbytes == root(array).nbytes)


def is_writeable(array: Any) -> bool:
    """Whether NumPy lets an array's elements be changed: not those of what it has broadcast."""
    return bool(array.writeable if isinstance(array, ShapeArray) else array.flags.writeable)


def stand_in(shape: tuple[int, ...], dtype: Any, dry: bool = False) -> Array:
    """An array of that shape and dtype in the bytes of one element: for one that nobody will look at."""
    return np.broadcast_to(ShapeArray((), dtype) if dry else np.zeros((), dtype), shape)


def forgotten(known: dict[int, Any], key: int) -> Callable[[object], object]:
    """What has an entry go with the object that a weak reference is to.

    It is none of Python's functions, in which an interrupt (Ctrl-C) would be printed and lost.
    """
    return partial(known.pop, key)  # the reference is what `pop` gives where the entry has gone already


_arguments: dict[int, tuple[weakref.ref[Any], ShapeArray]] = {}


def argument_like(array: Any) -> ShapeArray:
    """What stands on a dry run for an array that was there before the step: laid out as it is, in a like buffer.

    Views of one buffer are views of one buffer here, too; each time the array is met it is the same.
    """
    if isinstance(array, ShapeArray):
        return array
    buffer = root(array)
    key, arguments = id(buffer), _arguments
    if key not in arguments:
        gone = weakref.ref(buffer, forgotten(arguments, key))
        arguments[key] = gone, ShapeArray.argument(buffer.shape, buffer.dtype, buffer.strides)
    like = arguments[key][1]
    return like if array is buffer else ShapeArray(array.shape, array.dtype, array.strides, like)


@lru_cache
def dtype_name(dtype: Any) -> str:
    """What NumPy calls a type, asked once.

    NumPy looks its naming function up by a new string each time, some of which stay in Python's cache of attributes:
    in a measurement they are bytes that come and go by chance.
    """
    name: str = dtype.name
    return name


def buffer_bytes(buffer: Buffer) -> int:
    """Size of a root allocation in bytes."""
    return buffer.nbytes


def leaves(value: object) -> Iterator[Array]:
    """The arrays in a saved value: the value itself, or those inside a tuple or list (an index, say)."""
    if is_array(value):
        yield value  # type: ignore[misc]
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)


def distinct_bytes(arrays: Iterable[Array]) -> int:
    """Bytes of the distinct root buffers under ``arrays``: each root once, however many views it has."""
    roots = {id(buffer): buffer for buffer in map(root, arrays)}
    return sum(map(buffer_bytes, roots.values()))
