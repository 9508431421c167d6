"""Elementwise arithmetic; inputs broadcast as in NumPy."""

from __future__ import annotations

from typing import Any

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


class Add(Elementwise):
    """x + y. Keeps nothing."""

    name = "add"
    source = "d(x + y)/dx = d(x + y)/dy = 1"
    saves = {"x": (), "y": ()}

    def forward(self, x: Array, y: Array) -> Array:
        return np.add(x, y)

    def vjp(self, d_out: Array, needs: Any, shapes: Any) -> tuple[Array | None, Array | None]:
        return (
            unbroadcast(d_out, shapes[0]) if needs.x else None,
            unbroadcast(d_out, shapes[1]) if needs.y else None,
        )


class Subtract(Elementwise):
    """x - y. Keeps nothing."""

    name = "subtract"
    source = "d(x - y)/dx = 1, d(x - y)/dy = -1"
    saves = {"x": (), "y": ()}

    def forward(self, x: Array, y: Array) -> Array:
        return np.subtract(x, y)

    def vjp(self, d_out: Array, needs: Any, shapes: Any) -> tuple[Array | None, Array | None]:
        return (
            unbroadcast(d_out, shapes[0]) if needs.x else None,
            np.negative(unbroadcast(d_out, shapes[1])) if needs.y else None,
        )


class Multiply(Elementwise):
    """x y: to differentiate by one factor, the other one is kept."""

    name = "multiply"
    source = "d(xy)/dx = y"
    saves = {"x": ("y",), "y": ("x",)}

    def forward(self, x: Array, y: Array) -> Array:
        return np.multiply(x, y)

    def vjp(self, d_out: Array, needs: Any, shapes: Any, x: Array, y: Array) -> tuple[Array | None, Array | None]:
        return (
            unbroadcast(np.multiply(d_out, y), shapes[0]) if needs.x else None,
            unbroadcast(np.multiply(d_out, x), shapes[1]) if needs.y else None,
        )


class Divide(Elementwise):
    """x / y: by x it keeps y, by y both."""

    name = "divide"
    source = "d(x/y)/dx = 1/y, d(x/y)/dy = -(x/y)/y"
    saves = {"x": ("y",), "y": ("x", "y")}

    def forward(self, x: Array, y: Array) -> Array:
        return np.divide(x, y)

    def vjp(self, d_out: Array, needs: Any, shapes: Any, x: Array, y: Array) -> tuple[Array | None, Array | None]:
        quotient = np.divide(d_out, y)
        d_x = unbroadcast(quotient, shapes[0]) if needs.x else None
        if not needs.y:
            return d_x, None
        d_y = np.divide(x, y, out=np.empty_like(d_out))
        np.multiply(quotient, d_y, out=d_y)
        np.negative(d_y, out=d_y)
        return d_x, unbroadcast(d_y, shapes[1])


class Negative(Elementwise):
    """-x. Keeps nothing."""

    name = "negative"
    source = "d(-x)/dx = -1"
    saves = {"x": ()}

    def forward(self, x: Array) -> Array:
        return np.negative(x)

    def vjp(self, d_out: Array) -> Array:
        return np.negative(d_out)


class Power(Elementwise):
    """x ** exponent. By a base whose exponent is a number it keeps the base alone; by the exponent also its output."""

    name = "power"
    source = "d(x^p)/dx = p x^(p-1) (0 where p = 0), d(x^p)/dp = x^p log x (0 where x = 0)"
    saves = {"x": ("x", "exponent"), "exponent": ("x", "out")}

    def forward(self, x: Array, exponent: Array) -> Array:
        return np.power(x, exponent)

    def vjp(
        self, d_out: Array, needs: Any, shapes: Any, x: Array, exponent: Array, out: Array
    ) -> tuple[Array | None, Array | None]:
        d_x = d_exponent = None
        if needs.x:
            slope = np.power(x, _lowered(exponent))
            slope = np.multiply(slope, exponent)
            d_x = unbroadcast(np.multiply(slope, d_out), shapes[0])
        if needs.exponent:
            with np.errstate(invalid="ignore"):  # negative numbers have no derivative by the exponent: NaN says so
                slope = np.log(np.where(np.equal(x, 0), 1, x))  # the limit of x^p log x at 0 is 0
            slope = np.multiply(slope, out)
            d_exponent = unbroadcast(np.multiply(slope, d_out), shapes[1])
        return d_x, d_exponent


def _lowered(exponent: Any) -> Any:
    """The exponent of p x^(p-1): 0 for p = 0, where the product is 0 even at x = 0.

    A Python number stays one, and so takes x's dtype.
    """
    if is_array(exponent):
        return np.where(np.equal(exponent, 0), 0, np.subtract(exponent, 1))
    return exponent - 1 if exponent else 0


class Exp(Elementwise):
    """e^x. Keeps its output."""

    name = "exp"
    source = "d(e^x)/dx = e^x"
    saves = {"x": ("out",)}

    def forward(self, x: Array) -> Array:
        return np.exp(x)

    def vjp(self, d_out: Array, out: Array) -> Array:
        return np.multiply(d_out, out)


class Log(Elementwise):
    """Natural logarithm. Keeps its input."""

    name = "log"
    source = "d(log x)/dx = 1/x"
    saves = {"x": ("x",)}

    def forward(self, x: Array) -> Array:
        return np.log(x)

    def vjp(self, d_out: Array, x: Array) -> Array:
        return np.divide(d_out, x)


class Sqrt(Elementwise):
    """Square root. Keeps its output."""

    name = "sqrt"
    source = "d(sqrt x)/dx = 1 / (2 sqrt x)"
    saves = {"x": ("out",)}

    def forward(self, x: Array) -> Array:
        return np.sqrt(x)

    def vjp(self, d_out: Array, out: Array) -> Array:
        d_x = np.divide(d_out, out)
        return np.multiply(d_x, 0.5)


class Absolute(Elementwise):
    """|x|, whose derivative at 0 is 0. Keeps its input."""

    name = "absolute"
    source = "d|x|/dx = sign x"
    saves = {"x": ("x",)}

    def forward(self, x: Array) -> Array:
        return np.absolute(x)

    def vjp(self, d_out: Array, x: Array) -> Array:
        sign = np.sign(x)
        return np.multiply(d_out, sign)


class Maximum(Elementwise):
    """The greater of x and y; where they are equal, each gets half of the gradient, as in PyTorch.

    Keeps two bits an element: whether x is greater, and whether they are equal.
    """

    name = "maximum"
    source = "d max(x, y)/dx = 1 where x > y, 1/2 where x = y"
    saves = {"x": ("greater", "equal"), "y": ("greater", "equal")}
    residuals = ("greater", "equal")

    def forward(self, x: Array, y: Array, keep: bool) -> tuple[Array, Array | None, Array | None]:
        out = np.maximum(x, y)
        if not keep:
            return out, None, None
        return out, np.packbits(np.greater(x, y)), np.packbits(np.equal(x, y))

    def vjp(
        self, d_out: Array, needs: Any, shapes: Any, greater: Array, equal: Array
    ) -> tuple[Array | None, Array | None]:
        share = np.multiply(_unpack(equal, d_out), 0.5, out=np.empty_like(d_out))
        np.add(share, _unpack(greater, d_out), out=share)  # the part of the gradient that goes to x
        to_x = np.multiply(d_out, share) if needs.x else None
        to_y = None
        if needs.y:
            to_y = np.subtract(1, share, out=share)
            to_y = np.multiply(d_out, to_y)
        return (
            unbroadcast(to_x, shapes[0]) if to_x is not None else None,
            unbroadcast(to_y, shapes[1]) if to_y is not None else None,
        )


def _unpack(bits: Array, like: Array) -> Array:
    return np.reshape(np.unpackbits(bits, count=like.size), like.shape)


class Where(Elementwise):
    """x where the condition holds, else y. Keeps the condition."""

    name = "where"
    source = "out = c x + (1 - c) y with c 1 or 0: d out/dx = c, d out/dy = 1 - c"
    saves = {"x": ("condition",), "y": ("condition",)}

    def forward(self, condition: Array, x: Array, y: Array) -> Array:
        return np.where(condition, x, y)

    def vjp(self, d_out: Array, needs: Any, shapes: Any, condition: Array) -> tuple[None, Array | None, Array | None]:
        d_x = d_y = None
        if needs.x:
            d_x = unbroadcast(np.multiply(d_out, condition), shapes[1])
        if needs.y:
            other = np.logical_not(condition)
            d_y = unbroadcast(np.multiply(d_out, other), shapes[2])
        return None, d_x, d_y


absolute = Absolute()
add = Add()
divide = Divide()
exp = Exp()
log = Log()
maximum = Maximum()
multiply = Multiply()
negative = Negative()
power = Power()
sqrt = Sqrt()
subtract = Subtract()
where = Where()
