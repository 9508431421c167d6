"""Arrays that hold no memory: shape, dtype, strides and the identity of a root buffer, for a dry run.

A :class:`ShapeArray` answers NumPy's ``__array_ufunc__`` and ``__array_function__`` protocols, so that code written in
plain ``np.*`` runs on it unchanged. It counts the bytes that a real array would take, when it comes to life and when it
dies; CPython frees it exactly when it would free the real one. What it does in a function of NumPy's is in
:mod:`memback.dry.functions`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from memback.dry.layout import (
    elementwise_result,
    is_column_major,
    is_plain,
    miniature,
    order_of,
    rows,
    shape_of,
    strides_in_order,
)
from memback.dry.memory import MOST_OF_ONE, local, too_large
from memback.dry.registry import FUNCTIONS, OPERATIONS
from memback.engine.arrays import DryArray, forgotten, is_row_major, root
from memback.errors import MembackError, shorten

__all__ = [
    "NoValuesError",
    "ShapeArray",
    "UnsupportedError",
    "argument_like",
    "copy_of",
    "is_shape_array",
    "laid_out",
    "like_operands",
]


class NoValuesError(MembackError, TypeError):
    """A dry run needed a value, or met a function that it does not know."""


class UnsupportedError(NoValuesError, AttributeError):
    """An attribute that real arrays have, and arrays without memory have not."""


_METHODS = frozenset({"all", "any", "argmax", "argmin", "clip", "cumprod", "cumsum", "diagonal", "max", "mean", "min"})
_METHODS |= {"prod", "ravel", "repeat", "squeeze", "std", "sum", "swapaxes", "take", "var"}


_arguments: dict[int, tuple[weakref.ref[Any], ShapeArray]] = {}


def is_shape_array(value: object) -> bool:
    """Whether ``value`` is an array without memory."""
    return isinstance(value, ShapeArray)


class ShapeArray(DryArray, NDArrayOperatorsMixin):
    """An array without memory.

    Args:
        shape: size along each dimension.
        dtype: element type, as NumPy takes it.
        strides: bytes between neighbours along each dimension; row-major by default.
        base: the array whose buffer this one is a view of, or None if it has one of its own.

    It has no values: what needs one (``if x > 0``, ``float(x)``, ``np.asarray(x)``, boolean masks) raises
    :class:`NoValuesError`.
    """

    __slots__ = (
        "__weakref__",
        "base",
        "contiguous",
        "dtype",
        "nbytes",
        "shape",
        "size",
        "strides",
        "writeable",
    )

    def __init__(
        self,
        shape: int | Sequence[int],
        dtype: Any = "float32",
        strides: tuple[int, ...] | None = None,
        base: ShapeArray | None = None,
    ) -> None:
        self._describe(shape, dtype)
        self._lay_out(strides)
        self.base = base
        if base is None:
            local.memory.hold(self)

    def _describe(self, shape: int | Sequence[int], dtype: Any) -> None:
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.dtype = np.dtype(dtype)
        self.strides, self.size = rows(self.shape, self.dtype.itemsize)
        self.nbytes = self.size * self.dtype.itemsize
        self.contiguous = self.writeable = True
        if self.nbytes > MOST_OF_ONE:
            raise too_large(f"an array of shape {shorten(self.shape)}", self.nbytes)

    def _lay_out(self, strides: tuple[int, ...] | None) -> None:
        if strides is not None:
            self.strides = strides
            self.contiguous = is_row_major(self.shape, strides, self.dtype.itemsize)

    @classmethod
    def argument(
        cls, shape: int | Sequence[int], dtype: Any = "float32", strides: tuple[int, ...] | None = None
    ) -> ShapeArray:
        """An array that counts nowhere: it stands for memory that is there before the step."""
        array = cls.__new__(cls)
        array._describe(shape, dtype)
        array._lay_out(strides)
        array.base = None
        return array

    @classmethod
    def argument_like(cls, array: Any) -> ShapeArray:
        """What stands on a dry run for an array that was there before the step: laid out as it is, in a like buffer.

        Views of one buffer are views of one buffer here, too; each time the array is met it is the same.
        """
        if isinstance(array, ShapeArray):
            return array
        buffer = root(array)
        key, arguments = id(buffer), _arguments
        if key not in arguments:
            gone = weakref.ref(buffer, forgotten(arguments, key))
            arguments[key] = gone, cls.argument(buffer.shape, buffer.dtype, buffer.strides)
        like = arguments[key][1]
        return like if array is buffer else cls(array.shape, array.dtype, array.strides, like)

    # -- what an ndarray also has

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.dtype.itemsize)

    @property
    def T(self) -> ShapeArray:
        """The transpose, a view."""
        return self.transpose()

    def view_as(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> ShapeArray:
        """A view of the same buffer."""
        view = ShapeArray(shape, self.dtype, strides, self if self.base is None else self.base)
        view.writeable = self.writeable
        return view

    def read_only(self) -> ShapeArray:
        """The array itself, which NumPy does not let be changed from now on."""
        self.writeable = False
        return self

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[ShapeArray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"ShapeArray({self.shape}, {self.dtype.name!r})"

    # -- values, of which there are none

    def _no_value(self, what: str) -> NoValuesError:
        return NoValuesError(
            f"{what} needs the values of {self!r}, and on a dry run arrays have none. Take decisions on shapes and"
            " dtypes instead, or run on real arrays"
        )

    def __contains__(self, value: object) -> bool:
        raise self._no_value("`in`")

    def __format__(self, spec: str) -> str:
        if spec:
            raise self._no_value("formatting")
        return repr(self)

    # -- indexing

    def __getitem__(self, index: Any) -> ShapeArray:
        picked: ShapeArray = OPERATIONS["getitem"](self, index)
        return picked

    def __setitem__(self, index: Any, value: Any) -> None:
        OPERATIONS["setitem"](self, index, value)

    # -- methods

    def astype(
        self, dtype: Any, order: str = "K", casting: str = "unsafe", subok: bool = True, copy: bool = True
    ) -> ShapeArray:
        """A copy of another type (itself where ``copy`` is False and the type is the same)."""
        dtype = np.dtype(dtype)
        if not copy and dtype == self.dtype:
            return self
        return copy_of(self, dtype, order)

    def copy(self, order: str = "C") -> ShapeArray:
        """A copy with a buffer of its own."""
        return copy_of(self, None, order)

    def flatten(self, order: str = "C") -> ShapeArray:
        """One dimension, in a buffer of its own."""
        return ShapeArray((self.size,), self.dtype)

    def reshape(self, *shape: Any, **_: Any) -> ShapeArray:
        """A view where the layout allows one, else a copy, as in NumPy."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        view: ShapeArray = FUNCTIONS[np.reshape](self, wanted)
        return view

    def transpose(self, *axes: Any) -> ShapeArray:
        """A view with the dimensions in another order."""
        order = axes[0] if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))) else axes
        view: ShapeArray = FUNCTIONS[np.transpose](self, order or None)
        return view

    def __getattr__(self, name: str) -> Any:
        """Methods that are functions of the same name; for what else an array has, a clear refusal."""
        function = FUNCTIONS.get(getattr(np, name)) if name in _METHODS else None
        if function is not None:
            return partial(function, self)
        if hasattr(np.ndarray, name) and not name.startswith("__"):
            raise UnsupportedError(f"ndarray.{name} is not supported on arrays without memory")
        raise AttributeError(f"'ShapeArray' object has no attribute {name!r}")

    def fill(self, value: Any) -> None:
        """Sets every element; nothing to do."""

    # -- protocols

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        for value in inputs:
            if value.__class__ is not ShapeArray and _is_foreign(value.__class__):
                return NotImplemented
        out = kwargs.pop("out", None)
        if method == "__call__":
            if ufunc.signature is None:
                return OPERATIONS["elementwise"](ufunc, inputs, out, kwargs)
            if ufunc is np.matmul:
                return OPERATIONS["matmul"](inputs, out)
            if ufunc is np.vecdot:
                return OPERATIONS["vecdot"](inputs, out, **kwargs)
        elif method == "reduce":
            return OPERATIONS["reduce"](ufunc, inputs[0], out=None if out is None else out[0], **kwargs)
        elif method == "at":
            return inputs[0].__setitem__(inputs[1], inputs[2] if len(inputs) > 2 else 0)
        raise NoValuesError(f"np.{ufunc.__name__}.{method} is not supported on arrays without memory")

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        if any(map(_is_foreign, types)):
            return NotImplemented
        handler = FUNCTIONS.get(func)
        if handler is None:
            raise NoValuesError(f"{_name_of(func)} is not supported on arrays without memory")
        return handler(*args, **kwargs)


_VALUES = {
    "__bool__": "a condition",
    "__float__": "float()",
    "__int__": "int()",
    "__complex__": "complex()",
    "__index__": "an index",
    "item": ".item()",
    "tolist": ".tolist()",
    "__array__": "making a real array (np.asarray, or a NumPy function that takes no substitute)",
}
"""Methods that give values, and what is said of each that needs them."""


def _valueless(what: str) -> Callable[..., NoReturn]:
    def method(self: ShapeArray, *_: Any, **__: Any) -> NoReturn:
        raise self._no_value(what)

    return method


for _name, _what in _VALUES.items():
    setattr(ShapeArray, _name, _valueless(_what))

argument_like = ShapeArray.argument_like


@lru_cache(maxsize=256)
def _is_foreign(kind: type) -> bool:
    """Whether values of a class have a way of their own to take part in NumPy's functions, as Tensors have."""
    own = getattr(kind, "__array_ufunc__", np.ndarray.__array_ufunc__)
    return own is not np.ndarray.__array_ufunc__ and not issubclass(kind, ShapeArray)


def _name_of(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", "numpy").partition(".")[2]
    return f"np.{module}.{function.__name__}" if module in ("linalg", "fft") else f"np.{function.__name__}"


def laid_out(
    function: Callable[..., Any], operands: Sequence[Any], shape: tuple[int, ...], dtype: Any, **options: Any
) -> ShapeArray:
    """A new array of ``shape``, laid out as ``function`` of real operands would lay it out."""
    if all(map(is_plain, operands)) or math.prod(shape) == 0:
        return ShapeArray(shape, dtype)
    dtype = np.dtype(dtype)
    order = order_of(function, tuple(map(miniature, operands)), **options)
    return ShapeArray(shape, dtype, strides_in_order(shape, order, dtype.itemsize))


def like_operands(operands: Sequence[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> ShapeArray:
    """A new array of ``shape``, laid out as NumPy lays out the result of an elementwise function of ``operands``."""
    if all(map(is_plain, operands)):
        return ShapeArray(shape, dtype)
    return laid_out(elementwise_result, [o for o in operands if shape_of(o)], shape, dtype)


def copy_of(a: Any, dtype: Any = None, order: str | None = "K") -> ShapeArray:
    """A copy, laid out as ``order`` says, of another type if one is given."""
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if order == "F" or (order == "A" and is_column_major(a)):
        return ShapeArray(a.shape, dtype, strides_in_order(a.shape, range(a.ndim)[::-1], dtype.itemsize))
    return laid_out(np.copy, (a,), a.shape, dtype) if order in ("K", None) else ShapeArray(a.shape, dtype)
