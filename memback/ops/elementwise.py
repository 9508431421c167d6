"""Elementwise arithmetic; inputs broadcast as in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from memback.engine.arrays import Array, is_array
from memback.engine.op import Op
from memback.ops.broadcasting import unbroadcast

__all__ = [
    "absolute",
    "add",
    "divide",
    "exp",
    "log",
    "maximum",
    "multiply",
    "negative",
    "power",
    "sqrt",
    "subtract",
    "where",
]


class Elementwise(Op):
    """An op whose output's elements each cost a fixed number of operations."""

    operations = 1

    def flops(self, out: Array) -> int:
        return self.operations * out.size


class _Function(Elementwise):
    """An op that is a function of NumPy's, of one array."""

    function: ClassVar[np.ufunc]
    renamed = {"x": "input"}

    def forward(self, input: Array) -> Array:
        return self.function(input)


def _of_one(function: np.ufunc, what: str, source: str, keeps: tuple[str, ...], vjp: Callable[..., Array]) -> Op:
    """Declare the op that is a function of NumPy's; ``vjp`` takes dL/d(output) and what the op ``keeps``."""
    declared = {"__doc__": what, "name": function.__name__, "source": source, "saves": {"input": keeps}}
    op: Op = type(function.__name__, (_Function,), {**declared, "function": function, "vjp": staticmethod(vjp)})()
    return op


class _FunctionOfTwo(Elementwise):
    """An op that is a function of NumPy's, of two arrays."""

    function: ClassVar[np.ufunc]
    renamed = {"x": "input", "y": "other"}

    def forward(self, input: Array, other: Array) -> Array:
        return self.function(input, other)


class Add(_FunctionOfTwo):
    """input + other. Keeps nothing."""

    name = "add"
    source = "d(x + y)/dx = d(x + y)/dy = 1"
    saves = {"input": (), "other": ()}
    function = np.add

    def vjp(self, d_out: Array, needs: Any, shapes: Any) -> tuple[Array | None, Array | None]:
        return (
            unbroadcast(d_out, shapes[0]) if needs.input else None,
            unbroadcast(d_out, shapes[1]) if needs.other else None,
        )


class Subtract(_FunctionOfTwo):
    """input - other. Keeps nothing."""

    name = "subtract"
    source = "d(x - y)/dx = 1, d(x - y)/dy = -1"
    saves = {"input": (), "other": ()}
    function = np.subtract

    def vjp(self, d_out: Array, needs: Any, shapes: Any) -> tuple[Array | None, Array | None]:
        return (
            unbroadcast(d_out, shapes[0]) if needs.input else None,
            np.negative(unbroadcast(d_out, shapes[1])) if needs.other else None,
        )


class Multiply(_FunctionOfTwo):
    """input * other. Keeps each factor for the gradient by the other one."""

    name = "multiply"
    source = "d(xy)/dx = y"
    saves = {"input": ("other",), "other": ("input",)}
    function = np.multiply

    def vjp(
        self, d_out: Array, needs: Any, shapes: Any, input: Array, other: Array
    ) -> tuple[Array | None, Array | None]:
        return (
            unbroadcast(np.multiply(d_out, other), shapes[0]) if needs.input else None,
            unbroadcast(np.multiply(d_out, input), shapes[1]) if needs.other else None,
        )


class Divide(_FunctionOfTwo):
    """input / other. Keeps the divisor for the gradient by the dividend, and both for that by the divisor."""

    name = "divide"
    source = "d(x/y)/dx = 1/y, d(x/y)/dy = -(x/y)/y"
    saves = {"input": ("other",), "other": ("input", "other")}
    function = np.divide

    def vjp(
        self, d_out: Array, needs: Any, shapes: Any, input: Array, other: Array
    ) -> tuple[Array | None, Array | None]:
        quotient = np.divide(d_out, other)
        d_input = unbroadcast(quotient, shapes[0]) if needs.input else None
        if not needs.other:
            return d_input, None
        d_other = np.divide(input, other, out=np.empty_like(d_out))
        np.multiply(quotient, d_other, out=d_other)
        np.negative(d_other, out=d_other)
        return d_input, unbroadcast(d_other, shapes[1])


class Power(Elementwise):
    """input ** exponent. Keeps the base and an exponent that is an array; for the gradient by that, the output too."""

    name = "power"
    source = "d(x^p)/dx = p x^(p-1) (0 where p = 0), d(x^p)/dp = x^p log x (0 where x = 0)"
    saves = {"input": ("input", "exponent"), "exponent": ("input", "out")}
    renamed = {"x": "input"}

    def forward(self, input: Array, exponent: Array) -> Array:
        return np.power(input, exponent)

    def vjp(
        self, d_out: Array, needs: Any, shapes: Any, input: Array, exponent: Array, out: Array
    ) -> tuple[Array | None, Array | None]:
        d_input = d_exponent = None
        if needs.input:
            slope = np.power(input, _lowered(exponent))
            slope = np.multiply(slope, exponent)
            d_input = unbroadcast(np.multiply(slope, d_out), shapes[0])
        if needs.exponent:
            with np.errstate(invalid="ignore"):  # negative numbers have no derivative by the exponent: NaN says so
                slope = np.log(np.where(np.equal(input, 0), 1, input))  # the limit of x^p log x at 0 is 0
            slope = np.multiply(slope, out)
            d_exponent = unbroadcast(np.multiply(slope, d_out), shapes[1])
        return d_input, d_exponent


def _lowered(exponent: Any) -> Any:
    """The exponent of p x^(p-1): 0 for p = 0, where the product is 0 even at x = 0.

    A Python number stays one, and so takes x's dtype.
    """
    if is_array(exponent):
        return np.where(np.equal(exponent, 0), 0, np.subtract(exponent, 1))
    return exponent - 1 if exponent else 0


class Maximum(Elementwise):
    """The greater of input and other; where they are equal, each gets half of the gradient, as in PyTorch.

    Keeps two bits an element: whether the input is greater, and whether they are equal.
    """

    name = "maximum"
    source = "d max(x, y)/dx = 1 where x > y, 1/2 where x = y"
    saves = {"input": ("greater", "equal"), "other": ("greater", "equal")}
    renamed = {"x": "input", "y": "other"}
    residuals = ("greater", "equal")

    def forward(self, input: Array, other: Array, keep: bool) -> tuple[Array, Array | None, Array | None]:
        out = np.maximum(input, other)
        if not keep:
            return out, None, None
        return out, np.packbits(np.greater(input, other)), np.packbits(np.equal(input, other))

    def vjp(
        self, d_out: Array, needs: Any, shapes: Any, greater: Array, equal: Array
    ) -> tuple[Array | None, Array | None]:
        share = np.multiply(_unpack(equal, d_out), 0.5, out=np.empty_like(d_out))
        np.add(share, _unpack(greater, d_out), out=share)  # the part of the gradient that goes to the input
        to_input = np.multiply(d_out, share) if needs.input else None
        to_other = None
        if needs.other:
            to_other = np.subtract(1, share, out=share)
            to_other = np.multiply(d_out, to_other)
        return (
            unbroadcast(to_input, shapes[0]) if to_input is not None else None,
            unbroadcast(to_other, shapes[1]) if to_other is not None else None,
        )


def _unpack(bits: Array, like: Array) -> Array:
    return np.reshape(np.unpackbits(bits, count=like.size), like.shape)


class Where(Elementwise):
    """input where the condition holds, else other. Keeps the condition."""

    name = "where"
    source = "out = c x + (1 - c) y with c 1 or 0: d out/dx = c, d out/dy = 1 - c"
    saves = {"input": ("condition",), "other": ("condition",)}
    renamed = {"x": "input", "y": "other"}

    def forward(self, condition: Array, input: Array, other: Array) -> Array:
        return np.where(condition, input, other)

    def vjp(self, d_out: Array, needs: Any, shapes: Any, condition: Array) -> tuple[None, Array | None, Array | None]:
        d_input = d_other = None
        if needs.input:
            d_input = unbroadcast(np.multiply(d_out, condition), shapes[1])
        if needs.other:
            opposite = np.logical_not(condition)
            d_other = unbroadcast(np.multiply(d_out, opposite), shapes[2])
        return None, d_input, d_other


absolute = _of_one(
    np.absolute,
    "|x|, whose derivative at 0 is 0. Keeps its input.",
    "d|x|/dx = sign x",
    ("input",),
    lambda d_out, input: np.multiply(d_out, np.sign(input)),
)
add = Add()
divide = Divide()
exp = _of_one(np.exp, "e^x. Keeps its output.", "d(e^x)/dx = e^x", ("out",), lambda d_out, out: np.multiply(d_out, out))
log = _of_one(
    np.log,
    "Natural logarithm. Keeps its input.",
    "d(log x)/dx = 1/x",
    ("input",),
    lambda d_out, input: np.divide(d_out, input),
)
maximum = Maximum()
multiply = Multiply()
negative = _of_one(np.negative, "-x. Keeps nothing.", "d(-x)/dx = -1", (), lambda d_out: np.negative(d_out))
power = Power()
sqrt = _of_one(
    np.sqrt,
    "Square root. Keeps its output.",
    "d(sqrt x)/dx = 1 / (2 sqrt x)",
    ("out",),
    lambda d_out, out: np.multiply(np.divide(d_out, out), 0.5),
)
subtract = Subtract()
where = Where()
