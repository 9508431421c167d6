"""Errors of calls: which call it was, where it was made, and what it was given."""

from __future__ import annotations

import math
from typing import Any

from memback.engine.arrays import form, is_array
from memback.engine.op import Op, OpError
from memback.engine.site import Site, describe
from memback.errors import MembackError, OutOfMemoryError

__all__ = ["failure", "is_for_the_op_to_explain", "out_of_memory"]


def is_for_the_op_to_explain(error: BaseException) -> bool:
    """Whether an exception does not name the call that raised it, so that it may be replaced by an OpError."""
    if isinstance(error, MembackError):
        return isinstance(error, OpError)
    return isinstance(error, Exception)


def out_of_memory(what: str, error: MemoryError) -> OutOfMemoryError:
    """The same as memback's error: which call it was, and what it asked for."""
    from memback.units import format_bytes

    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    if shape is None or dtype is None:
        return OutOfMemoryError(
            f"{what} found no more memory ({str(error) or 'of a size that is not known'}). Use a smaller batch, a"
            " checkpoint policy or a plan"
        )
    size = math.prod(shape) * dtype.itemsize
    return OutOfMemoryError(
        f"{what} found no more memory: it asked for {format_bytes(size)}, {form(dtype, shape)}. Use a"
        " smaller batch, a checkpoint policy or a plan",
        size,
    )


def failure(op: Op, values: list[Any], error: BaseException, path: str, site: Site | None) -> OpError:
    """The error of a call that raised another: which call it was, and what it was given."""
    given = ", ".join(
        f"{name} {_summary(value)}" for name, value in zip(op.parameters, values, strict=True) if value is not None
    )
    return OpError(f"{describe(op.name, path, site)}: {error}; it was given {given}")


def _summary(value: Any) -> str:
    if is_array(value):
        return form(value.dtype, value.shape)
    if isinstance(value, (tuple, list)) and any(map(is_array, value)):
        return f"({', '.join(map(_summary, value))})"
    return repr(value)
