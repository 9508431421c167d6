"""NumPy's functions on Tensors: a function that has an op is recorded as that op, any other is refused.

Without this NumPy would read a Tensor as a sequence of Tensors and make an object array.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from memback.engine.errors import TapeError
from memback.engine.op import OpError
from memback.engine.site import call_site, short_path
from memback.engine.tensor import Tensor
from memback.ops import activations, elementwise, linear_algebra, reductions
from memback.ops import shape as shapes

__all__ = ["array", "array_function", "array_ufunc"]

_UFUNCS: dict[np.ufunc, Callable[..., Any]] = {
    np.absolute: elementwise.absolute,
    np.add: elementwise.add,
    np.divide: elementwise.divide,
    np.exp: elementwise.exp,
    np.log: elementwise.log,
    np.matmul: linear_algebra.matmul,
    np.maximum: elementwise.maximum,
    np.multiply: elementwise.multiply,
    np.negative: elementwise.negative,
    np.power: elementwise.power,
    np.sqrt: elementwise.sqrt,
    np.subtract: elementwise.subtract,
    np.tanh: activations.tanh,
}

_WITHOUT_DERIVATIVE = frozenset(
    {
        np.equal,
        np.greater,
        np.greater_equal,
        np.isfinite,
        np.isinf,
        np.isnan,
        np.less,
        np.less_equal,
        np.not_equal,
    }
)
"""Functions that give truth values, as plain arrays, like the operators ``<`` and ``==`` do."""


def array_ufunc(self: Tensor, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
    """``np.exp(tensor)`` and the like.

    Raises:
        OpError: the function has no op, or the op lacks an argument that is given.
    """
    if method == "__call__" and not kwargs:
        if ufunc in _UFUNCS:
            return _UFUNCS[ufunc](*inputs)
        if ufunc in _WITHOUT_DERIVATIVE:
            return ufunc(*map(_plain, inputs))
    called = ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}"
    _refuse(f"np.{called}{_with(kwargs)}")


def array_function(self: Tensor, function: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
    """``np.stack([tensor, tensor])`` and the like.

    Raises:
        OpError: the function has no op, or the op lacks an argument that is given.
    """
    handler = _FUNCTIONS.get(function)
    name = f"{function.__module__.replace('numpy', 'np', 1)}.{function.__name__}"
    if handler is None:
        _refuse(name)
    try:
        inspect.signature(handler).bind(*args, **kwargs)
    except TypeError:
        _refuse(f"{name}{_with(kwargs) or ', with these arguments,'}")
    return handler(*args, **kwargs)


def array(self: Tensor, dtype: Any = None, copy: bool | None = None) -> Any:
    """The data as a plain array, for ``np.asarray(tensor)``.

    Raises:
        TapeError: the tensor requires gradients, which an array can't carry.
    """
    if self.requires_grad:
        raise TapeError(
            f"np.asarray (or a NumPy function that uses it) at {short_path(call_site())} would cut a tensor that"
            " requires gradients off from what it was computed from: pass tensor.numpy(), or tensor.detach()"
        )
    return np.asarray(self.data, dtype=dtype, copy=copy)


def _plain(value: Any) -> Any:
    return value.data if isinstance(value, Tensor) else value


def _with(kwargs: dict[str, Any]) -> str:
    return f" with {', '.join(kwargs)}" if kwargs else ""


def _refuse(what: str) -> NoReturn:
    raise OpError(
        f"{what} at {short_path(call_site())} is no op on Tensors: use what memback.ops has, or give it the plain"
        " array, tensor.numpy(), where no gradient is wanted"
    )


# -- functions of the array module, with the arguments that the ops have


def _sum(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    if _plain(a).dtype.kind in "iub":  # which NumPy counts in a wider type
        _refuse(f"np.sum of {a.dtype}")
    return reductions.sum(a, axis, keepdims)


def _concatenate(arrays: Sequence[Any], axis: int = 0) -> Any:
    if axis is None:
        _refuse("np.concatenate with axis=None")
    return shapes.concatenate(arrays, axis)


def _transpose(a: Any, axes: Any = None) -> Any:
    return shapes.permute(a, range(a.ndim)[::-1] if axes is None else axes)


def _of_plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of which shape and dtype alone decide the result: it is given the data."""
    return lambda a, *args, **kwargs: function(_plain(a), *args, **kwargs)


_FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    np.broadcast_to: lambda array, shape: shapes.broadcast_to(array, (shape,) if isinstance(shape, int) else shape),
    np.concatenate: _concatenate,
    np.max: lambda a, axis=None, *, keepdims=False: reductions.max(a, axis, keepdims),
    np.mean: lambda a, axis=None, *, keepdims=False: reductions.mean(a, axis, keepdims),
    np.permute_dims: _transpose,
    np.reshape: lambda a, /, shape: a.reshape(shape),
    np.stack: lambda arrays, axis=0: shapes.stack(arrays, axis),
    np.sum: _sum,
    np.swapaxes: lambda a, axis1, axis2: shapes.swapaxes(a, axis1, axis2),
    np.transpose: _transpose,
    np.var: lambda a, axis=None, *, ddof=0, keepdims=False: reductions.var(a, axis, ddof, keepdims),
    np.where: lambda condition, x, y, /: elementwise.where(condition, x, y),
}
_FUNCTIONS |= {np.amax: _FUNCTIONS[np.max]} | {
    function: _of_plain(function)
    for function in (np.empty_like, np.full_like, np.ndim, np.ones_like, np.shape, np.size, np.zeros_like)
}
