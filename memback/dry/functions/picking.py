"""Picking elements, by indices and by arrays of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from memback.dry.array import NoValuesError, ShapeArray
from memback.dry.layout import axes_of, broadcast, miniature, order_of, shape_of, strides_in_order
from memback.dry.loops import take_buffers
from memback.dry.registry import implements, operation

__all__: list[str] = []


def _is_advanced(item: Any) -> bool:
    return isinstance(item, (ShapeArray, np.ndarray, list)) and shape_of(item) is not None


@operation("getitem")
def _get(a: ShapeArray, index: Any) -> ShapeArray:
    items = index if isinstance(index, tuple) else (index,)
    if any(_is_advanced(item) for item in items):
        return _take_advanced(a, items)
    view = _slice(a, items)
    # by numbers alone NumPy gives a number, which an op makes an array of its own of
    return view if view.shape or _has_a_gap(items) else ShapeArray((), a.dtype)


@operation("setitem")
def _set(a: ShapeArray, index: Any, value: Any) -> None:
    if not a.writeable:
        raise ValueError("assignment destination is read-only")
    items = index if isinstance(index, tuple) else (index,)
    if any(_is_advanced(item) for item in items):
        target = _picked(a, items).shape
        _take_index_buffers(items)
    else:
        target = _slice(a, items).shape
    if broadcast(shape_of(value), target) != target:
        raise ValueError(f"could not broadcast input of shape {shape_of(value)} into shape {target}")


@implements(np.take)
def _take(a: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Any:
    converted = _convert_index(indices)
    whole = None if a.contiguous else ShapeArray(a.shape, a.dtype)  # NumPy takes from rows that lie side by side
    shape = shape_of(indices)
    if axis is not None:
        (d,) = axes_of(axis, len(a.shape))
        shape = (*a.shape[:d], *shape, *a.shape[d + 1 :])
    made = ShapeArray(shape, a.dtype) if out is None else out
    del converted, whole
    return made


@implements(np.take_along_axis)
def _take_along_axis(arr: Any, indices: Any, axis: Any = -1) -> Any:
    return arr[_along_axis(arr, indices, axis)]


@implements(np.put_along_axis)
def _put_along_axis(arr: Any, indices: Any, values: Any, axis: Any) -> None:
    arr[_along_axis(arr, indices, axis)] = values


def _along_axis(arr: Any, indices: Any, axis: int) -> tuple[Any, ...]:
    """The index that NumPy puts together: of each other dimension all places, in arrays of their own."""
    (d,) = axes_of(axis, arr.ndim)
    return tuple(
        indices if i == d else ShapeArray((n,), np.intp).reshape((1,) * i + (n,) + (1,) * (arr.ndim - i - 1))
        for i, n in enumerate(arr.shape)
    )


def _convert_index(index: Any) -> Any:
    """np.take converts an integer index to NumPy's own pointer-sized type first, which takes memory for a moment."""
    dtype = getattr(index, "dtype", None)
    return None if dtype is None or dtype == np.intp else ShapeArray(shape_of(index), np.intp)


def _expand_ellipsis(ndim: int, items: tuple[Any, ...]) -> tuple[Any, ...]:
    used = sum(1 for item in items if item is not None and item is not Ellipsis)
    if used > ndim:
        raise IndexError(f"too many indices: {used} for an array of {ndim} dimensions")
    fill = (slice(None),) * (ndim - used)
    for i, item in enumerate(items):
        if item is Ellipsis:
            return items[:i] + fill + items[i + 1 :]
    return items + fill


def _slice(a: ShapeArray, items: tuple[Any, ...]) -> ShapeArray:
    shape, strides, d = [], [], 0
    for item in _expand_ellipsis(a.ndim, items):
        if item is None:
            shape.append(1)
            strides.append(0)
            continue
        if isinstance(item, slice):
            start, stop, step = item.indices(a.shape[d])
            shape.append(len(range(start, stop, step)))
            strides.append(a.strides[d] * step)
        else:
            _check_bounds(int(item), a.shape[d], d)
        d += 1
    return a.view_as(tuple(shape), tuple(strides))


def _has_a_gap(items: tuple[Any, ...]) -> bool:
    """Whether an index leaves dimensions out by name, as x[0, ...] does: then NumPy gives a view without dimensions."""
    return any(item is Ellipsis for item in items)


def _check_bounds(i: int, n: int, d: int) -> None:
    if not -n <= i < n:
        raise IndexError(f"index {i} is out of bounds for dimension {d} of size {n}")


def _take_advanced(a: ShapeArray, items: tuple[Any, ...]) -> ShapeArray:
    result = _picked(a, items)
    result = ShapeArray(result.shape, a.dtype, result.strides)
    _take_index_buffers(items)
    return result


def _take_index_buffers(items: tuple[Any, ...]) -> None:
    """Count the buffers through which NumPy reads arrays of indices that are of another type than its own."""
    arrays = [item if hasattr(item, "strides") else np.asarray(item) for item in items if _is_advanced(item)]
    take_buffers(arrays, [np.dtype(np.intp)] * len(arrays), broadcast(*map(shape_of, arrays)))


def _picked(a: ShapeArray, items: tuple[Any, ...]) -> ShapeArray:
    """An array that takes no memory, of the shape, type and layout of the elements that are picked."""
    items = _expand_ellipsis(a.ndim, items)
    for item in items:
        if _is_advanced(item) and np.dtype(_kind_of_index(item)) == bool:
            raise NoValuesError("a boolean mask selects by value; on a dry run arrays have none. Use np.where")
    for d, item in enumerate(item for item in items if item is not None):
        if isinstance(item, int):
            _check_bounds(item, a.shape[d], d)
    # integers beside arrays are arrays of no dimensions, as in NumPy
    places = [i for i, item in enumerate(items) if item is not None and not isinstance(item, slice)]
    picked = broadcast(*[shape_of(items[i]) for i in places])
    plain: list[Any] = [slice(None) if i in places else item for i, item in enumerate(items)]
    rest = _slice(a, tuple(plain))
    kept = [n for i, n in enumerate(rest.shape) if i not in places]
    adjacent = places == list(range(places[0], places[-1] + 1))
    before = places[0] if adjacent else 0
    shape = (*kept[:before], *picked, *kept[before:])
    if before == 0 and rest.contiguous:
        return ShapeArray.argument(shape, a.dtype)
    strides = _strides_of_picked(miniature(rest), tuple(places), shape, a.dtype.itemsize, len(picked))
    return ShapeArray.argument(shape, a.dtype, strides)


def _strides_of_picked(
    miniature: tuple[tuple[int, ...], tuple[int, ...]],
    places: tuple[int, ...],
    shape: tuple[int, ...],
    itemsize: int,
    ndim: int,
) -> tuple[int, ...]:
    """Picked elements are laid out first by the indices, then as the array is."""
    return strides_in_order(shape, order_of(_pick, (miniature,), places=places, ndim=ndim), itemsize)


def _pick(a: Any, places: tuple[int, ...], ndim: int) -> Any:
    index: list[Any] = [slice(None)] * a.ndim
    for place in places:
        index[place] = np.zeros((2,) * ndim, np.intp)
    return a[tuple(index)]


def _kind_of_index(item: Any) -> Any:
    return item.dtype if hasattr(item, "dtype") else np.asarray(item).dtype
