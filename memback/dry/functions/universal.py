"""Universal functions, element by element, and products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from memback.dry.array import ShapeArray, like_operands
from memback.dry.layout import broadcast, is_plain, kind_of, shape_of
from memback.dry.loops import loop_of, take_buffers
from memback.dry.registry import operation

__all__ = ["check_out", "elementwise"]


@operation("elementwise")
def elementwise(ufunc: np.ufunc, inputs: tuple[Any, ...], out: Any, kwargs: dict[str, Any]) -> Any:
    """The results of a universal function that works on each element by itself."""
    loop = loop_of(ufunc, tuple(map(kind_of, inputs)), kwargs.get("dtype"))
    shape, simple = _common(inputs)
    if out is None:
        make = ShapeArray if simple else partial(like_operands, inputs)
        results = tuple([make(shape, dtype) for dtype in loop.outputs])
        if loop.converts or not simple:
            take_buffers(inputs, loop.inputs, shape)
        return results[0] if len(results) == 1 else results
    results = tuple(
        [
            like_operands(inputs, shape, dtype) if target is None else target
            for target, dtype in zip(out, loop.outputs, strict=True)
        ]
    )
    converts = loop.converts
    for target, dtype in zip(results, loop.outputs, strict=True):
        check_out(ufunc.__name__, target, shape, dtype, kwargs.get("casting", "same_kind"))
        simple = simple and target.shape == shape and is_plain(target)
        converts = converts or target.dtype != dtype
    if converts or not simple:
        take_buffers((*inputs, *results), (*loop.inputs, *loop.outputs), results[0].shape)
    return results[0] if len(results) == 1 else results


def _common(operands: Sequence[Any]) -> tuple[tuple[int, ...], bool]:
    """The shape to which operands broadcast, and whether they are plain numbers or lie row by row in that shape."""
    shape: tuple[int, ...] = ()
    simple = True
    for operand in operands:
        own = shape_of(operand)
        if own == ():
            continue
        simple = simple and is_plain(operand)
        if shape == ():
            shape = own
        elif own != shape:
            shape, simple = broadcast(shape, own), False
    return shape, simple


def check_out(name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], casting: Any = "same_kind") -> None:
    """Raise unless a result fits into ``out``."""
    if out.shape != shape and broadcast(out.shape, shape) != out.shape:
        raise ValueError(f"np.{name}: out has shape {out.shape}, the result {shape}")
    if out.dtype != dtype and not np.can_cast(dtype, out.dtype, casting):
        raise TypeError(f"np.{name}: a result of type {dtype} can't be cast to out's {out.dtype}")
    if isinstance(out, ShapeArray) and not out.writeable:
        raise ValueError("output array is read-only")


@operation("matmul")
def _matmul(inputs: tuple[Any, ...], out: Any) -> Any:
    a, b = inputs
    a_shape, b_shape = shape_of(a), shape_of(b)
    if not a_shape or not b_shape:
        raise ValueError("matmul: an operand has no dimension")
    left = (1, *a_shape) if len(a_shape) == 1 else a_shape
    right = (*b_shape, 1) if len(b_shape) == 1 else b_shape
    if left[-1] != right[-2]:
        raise ValueError(f"matmul: shapes {a_shape} and {b_shape} do not fit: {left[-1]} columns, {right[-2]} rows")
    batch = broadcast(left[:-2], right[:-2])
    rows = () if len(a_shape) == 1 else (left[-2],)
    columns = () if len(b_shape) == 1 else (right[-1],)
    shape = (*batch, *rows, *columns)
    (dtype,) = loop_of(np.matmul, (kind_of(a), kind_of(b))).outputs
    return _product("matmul", inputs, shape, dtype, out)


@operation("vecdot")
def _vecdot(inputs: tuple[Any, ...], out: Any, keepdims: bool = False) -> Any:
    (*batch, length), (*_, other) = shape_of(inputs[0]), shape_of(inputs[1])
    if length != other:
        raise ValueError(f"vecdot: rows of {length} and of {other} do not fit")
    (dtype,) = loop_of(np.vecdot, tuple(map(kind_of, inputs))).outputs
    shape = (*broadcast(tuple(batch), shape_of(inputs[1])[:-1]), *((1,) if keepdims else ()))
    return _product("vecdot", inputs, shape, dtype, out)


def _product(name: str, inputs: tuple[Any, ...], shape: tuple[int, ...], dtype: np.dtype[Any], out: Any) -> Any:
    # NumPy converts whole operands, not a piece at a time as in elementwise functions
    converted = [ShapeArray(shape_of(x), dtype) for x in inputs if kind_of(x) != dtype]
    if out is not None and out[0] is not None:
        check_out(name, out[0], shape, dtype)
        return out[0]
    made = ShapeArray(shape, dtype)
    del converted
    return made
