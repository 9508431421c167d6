"""Python's operators and NumPy-like methods on Tensors, each an op. The tape itself has none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from memback.engine.tensor import Tensor, TensorOperators
from memback.ops import activations, elementwise, indexing, linear_algebra, numpy_functions, reductions, shape, softmax
from memback.ops.in_place import IN_PLACE

__all__: list[str] = []


def _binary(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: op(self, other)


def _reflected(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: op(other, self)


def _compare(ufunc: np.ufunc) -> Callable[..., Any]:
    return lambda self, other: ufunc(self.data, other.data if isinstance(other, Tensor) else other)


def _equal(ufunc: np.ufunc) -> Callable[..., Any]:
    """Compare elementwise; None and text are equal to no tensor."""

    def compare(self: Tensor, other: Any) -> Any:
        if other is None or isinstance(other, (str, bytes)):
            return NotImplemented
        return ufunc(self.data, other.data if isinstance(other, Tensor) else other)

    return compare


def _contains(self: Tensor, value: Any) -> bool:
    return bool(np.any(np.equal(self.data, value.data if isinstance(value, Tensor) else value)))


def _method(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: op(self, *args, **kwargs)


def _reshape(self: Tensor, *sizes: Any) -> Any:
    return shape.reshape(self, sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes)


def _permute(self: Tensor, *dims: Any) -> Any:
    return shape.permute(self, dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims)


def _iterate(self: Tensor) -> Iterator[Any]:
    if not self.ndim:
        raise TypeError("a tensor without dimensions can't be iterated over")
    return (indexing.getitem(self, i) for i in range(len(self)))


def _install() -> None:
    arithmetic = {
        "add": elementwise.add,
        "sub": elementwise.subtract,
        "mul": elementwise.multiply,
        "truediv": elementwise.divide,
        "pow": elementwise.power,
        "matmul": linear_algebra.matmul,
    }
    for name, op in arithmetic.items():
        setattr(TensorOperators, f"__{name}__", _binary(op))
        setattr(TensorOperators, f"__r{name}__", _reflected(op))
    comparisons = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    for name, ufunc in comparisons.items():
        setattr(TensorOperators, f"__{name}__", _compare(ufunc))
    for name, ufunc in {"eq": np.equal, "ne": np.not_equal}.items():
        setattr(TensorOperators, f"__{name}__", _equal(ufunc))
    methods: dict[str, Callable[..., Any]] = {
        "__contains__": _contains,
        "__neg__": elementwise.negative,
        "__abs__": elementwise.absolute,
        "__getitem__": indexing.getitem,
        "__iter__": _iterate,
        "abs": elementwise.absolute,
        "exp": elementwise.exp,
        "log": elementwise.log,
        "sqrt": elementwise.sqrt,
        "relu": activations.relu,
        "sigmoid": activations.sigmoid,
        "tanh": activations.tanh,
        "softmax": softmax.softmax,
        "sum": reductions.sum,
        "mean": reductions.mean,
        "var": reductions.var,
        "max": reductions.max,
        "transpose": shape.transpose,
        "split": shape.split,
    }
    for name, method in methods.items():
        setattr(TensorOperators, name, _method(method))
    for name, change in IN_PLACE.items():
        setattr(TensorOperators, name, change)
    TensorOperators.__array_ufunc__ = numpy_functions.array_ufunc
    TensorOperators.__array_function__ = numpy_functions.array_function
    TensorOperators.__array__ = numpy_functions.array
    TensorOperators.reshape = _reshape
    TensorOperators.permute = _permute


_install()
