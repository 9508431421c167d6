"""Arrays and the memory under them: which root buffer an array lives in, and how large that is.

A view, slice, reshape or transpose has the identity of its root and costs nothing, but keeps the whole root
alive; so memory is always counted in roots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, TypeAlias

import numpy as np

__all__ = [
    "Array",
    "Buffer",
    "DryArray",
    "buffer_bytes",
    "distinct_bytes",
    "dtype_name",
    "forgotten",
    "form",
    "is_array",
    "is_floating",
    "is_row_major",
    "is_whole",
    "is_writeable",
    "leaves",
    "root",
    "stand_in",
    "without_values",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""What ops are written in. On a dry run it is a :class:`DryArray`, which answers to the same functions."""

Buffer: TypeAlias = Array
"""A root allocation, named by the array that owns it."""


class DryArray:
    """Base of arrays without memory; :mod:`memback.dry` has the implementation.

    The class itself is in the state of a thread that runs dry, and makes what the engine needs.
    """

    __slots__ = ()

    nbytes: int
    """Bytes that the elements would take."""
    contiguous: bool
    """Whether the elements lie row by row without gaps."""
    writeable: bool
    """Whether NumPy would let the elements be changed."""

    def __init__(self, shape: Any, dtype: Any, strides: Any = None, base: Any = None) -> None:
        raise NotImplementedError

    @classmethod
    def argument(cls, shape: Any, dtype: Any, strides: Any = None) -> Any:
        """An array that counts nowhere: it stands for memory that is there before the step."""
        raise NotImplementedError

    @classmethod
    def argument_like(cls, array: Any) -> Any:
        """What stands on a dry run for an array that was there before the step: laid out as it is, in a like buffer."""
        raise NotImplementedError

    def copy(self) -> Any:
        """Another one, in a buffer of its own."""
        raise NotImplementedError


def is_array(value: object) -> bool:
    """Whether ``value`` is an array that holds memory (or stands for one on a dry run)."""
    return isinstance(value, (np.ndarray, DryArray))


def is_floating(dtype: Any) -> bool:
    """Whether elements of this type can have gradients."""
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")


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


@lru_cache(maxsize=8192)
def is_row_major(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether an array's elements lie row by row without gaps (strides of dimensions of size 1 do not matter)."""
    step = itemsize
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1:
            if stride != step:
                return 0 in shape
            step *= n
    return True


def is_whole(array: Any) -> bool:
    """Whether an array is its buffer, or a view that has each of the buffer's elements once, row by row."""
    if array.base is None:
        return True
    dense = array.contiguous if isinstance(array, DryArray) else array.flags.c_contiguous
    return bool(dense and array.nbytes == root(array).nbytes)


def is_writeable(array: Any) -> bool:
    """Whether NumPy lets an array's elements be changed: not those of what it has broadcast."""
    return bool(array.writeable if isinstance(array, DryArray) else array.flags.writeable)


def stand_in(shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of that shape and dtype in the bytes of one element: for one that will not be looked at."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def forgotten(known: dict[int, Any], key: int) -> Callable[[object], object]:
    """A callback of a weak reference: remove the entry of the object that has died.

    It is none of Python's functions, in which an interrupt (Ctrl-C) would be printed and lost.
    """
    return partial(known.pop, key)  # the reference is what `pop` gives where the entry has gone already


def without_values(value: Any, dry: type[DryArray]) -> Any:
    """On a dry run, what stands for a value: for a real array one without memory."""
    return dry.argument_like(value) if isinstance(value, np.ndarray) else value


@lru_cache
def dtype_name(dtype: Any) -> str:
    """NumPy's name of a type, cached.

    NumPy looks its naming function up by a new string each time, some of which stay in Python's cache of attributes:
    in a measurement they are bytes that come and go by chance.
    """
    name: str = dtype.name
    return name


def form(dtype: Any, shape: Sequence[int]) -> str:
    """An array's type and shape as messages have them: ``float32[64, 10]``."""
    return f"{dtype}[{', '.join(map(str, shape))}]"


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
