"""Activations: what follows a linear layer, element by element."""

from __future__ import annotations

from typing import Literal

import numpy as np

from memback.engine.arrays import Array
from memback.ops import compiled
from memback.ops.elementwise import Elementwise
from memback.ops.error_function import erf
from memback.ops.workspace import parts

__all__ = ["gelu", "leaky_relu", "relu", "relu_bits", "sigmoid", "silu", "softplus", "tanh"]


class Relu(Elementwise):
    """max(input, 0), whose derivative at 0 is 0 (Eqs. 17, 18). Keeps its output, which the next layer keeps anyway."""

    name = "relu"
    source = "Eqs. 17-23, 27"
    saves = {"input": ("out",)}
    renamed = {"a": "input"}

    def forward(self, input: Array) -> Array:
        return np.maximum(input, 0)

    def vjp(self, d_out: Array, out: Array) -> Array:
        """Eq. 23. The step function is written as numbers: a mask of booleans would have to be converted."""
        step = np.greater(out, 0, out=np.empty_like(d_out))
        return np.multiply(step, d_out, out=step)

    def closed_jacobian(self, input: Array) -> tuple[Array]:
        """delta_{j alpha} Theta(a_j) (Eq. 20)."""
        step = np.greater(input, 0).astype(input.dtype)
        return (np.diag(step.reshape(-1)).reshape(input.shape + input.shape),)


class ReluBits(Elementwise):
    """max(input, 0) that keeps one bit an element instead of its output, for where no other op keeps that output."""

    name = "relu_bits"
    source = "Eqs. 17-23, 27"
    saves = {"input": ("bits",)}
    renamed = {"a": "input"}
    residuals = ("bits",)

    def forward(self, input: Array, keep: bool) -> tuple[Array, Array | None]:
        return np.maximum(input, 0), np.packbits(np.greater(input, 0)) if keep else None

    def vjp(self, d_out: Array, bits: Array) -> Array:
        return np.multiply(d_out, np.reshape(np.unpackbits(bits, count=d_out.size), d_out.shape), dtype=d_out.dtype)


class LeakyRelu(Elementwise):
    """The input where it is positive, else negative_slope times it. Keeps its input."""

    name = "leaky_relu"
    source = "Maas et al. 2013"
    saves = {"input": ("input",)}
    operations = 2

    def forward(self, input: Array, negative_slope: float = 0.01) -> Array:
        out = _leaky_slope(input, negative_slope)
        return np.multiply(out, input, out=out)

    def vjp(self, d_out: Array, input: Array, negative_slope: float) -> Array:
        d_input = _leaky_slope(input, negative_slope)
        return np.multiply(d_input, d_out, out=d_input)


def _leaky_slope(x: Array, negative_slope: float) -> Array:
    slope = np.greater(x, 0, out=np.empty_like(x))
    np.multiply(slope, 1 - negative_slope, out=slope)
    return np.add(slope, negative_slope, out=slope)


class Sigmoid(Elementwise):
    """1 / (1 + e^-x), without overflow. Keeps its output."""

    name = "sigmoid"
    source = "d sigma/dx = sigma (1 - sigma)"
    saves = {"input": ("out",)}
    operations = 3

    def forward(self, input: Array) -> Array:
        return _sigmoid(input, np.empty_like(input))

    def vjp(self, d_out: Array, out: Array) -> Array:
        slope = np.subtract(1, out, out=np.empty_like(out))
        np.multiply(slope, out, out=slope)
        return np.multiply(slope, d_out, out=slope)


def _sigmoid(x: Array, out: Array) -> Array:
    """Through tanh, which saturates instead of overflowing: sigma(x) = (1 + tanh(x/2)) / 2."""
    np.multiply(x, 0.5, out=out)
    np.tanh(out, out=out)
    np.add(out, 1, out=out)
    return np.multiply(out, 0.5, out=out)


class Tanh(Elementwise):
    """Hyperbolic tangent. Keeps its output."""

    name = "tanh"
    source = "d tanh/dx = 1 - tanh^2"
    saves = {"input": ("out",)}

    def forward(self, input: Array) -> Array:
        return np.tanh(input)

    def vjp(self, d_out: Array, out: Array) -> Array:
        slope = np.multiply(out, out, out=np.empty_like(out))
        np.subtract(1, slope, out=slope)
        return np.multiply(slope, d_out, out=slope)


class Gelu(Elementwise):
    """x Phi(x), Phi the standard normal's distribution; or its approximation by a tanh. Keeps its input."""

    name = "gelu"
    source = "Hendrycks & Gimpel 2016, arXiv 1606.08415"
    saves = {"input": ("input",)}
    operations = 8

    def forward(self, input: Array, approximate: Literal["none", "tanh"] = "none") -> Array:
        if approximate not in ("none", "tanh"):
            raise ValueError(f"`approximate` (={approximate!r}) must be 'none' or 'tanh'")
        gate = _tanh_gate if approximate == "tanh" else _normal_gate
        out = np.empty_like(input)
        if compiled.run(f"gelu_{approximate}", input, out):
            return out
        for part in parts(input):
            x, y = input[part], out[part]
            gate(x, y)
            np.multiply(y, x, out=y)
        return out

    def vjp(self, d_out: Array, input: Array, approximate: str) -> Array:
        slope = _tanh_slope if approximate == "tanh" else _normal_slope
        d_input = np.empty_like(input)
        if compiled.run(f"gelu_{approximate}_gradient", d_out, input, d_input):
            return d_input
        for part in parts(input):
            y = d_input[part]
            slope(input[part], y)
            np.multiply(y, d_out[part], out=y)
        return d_input


def _normal_gate(x: Array, out: Array) -> None:
    """Phi(x)."""
    np.copyto(out, erf(np.multiply(x, 0.7071067811865476)))
    np.add(out, 1, out=out)
    np.multiply(out, 0.5, out=out)


def _normal_slope(x: Array, out: Array) -> None:
    """Phi(x) + x phi(x)."""
    _normal_gate(x, out)
    density = np.multiply(x, x, out=np.empty_like(x))
    np.multiply(density, -0.5, out=density)
    np.exp(density, out=density)
    np.multiply(density, x, out=density)
    np.multiply(density, 1 / np.sqrt(2 * np.pi).item(), out=density)
    np.add(out, density, out=out)


_SCALE = 0.7978845608028654
"""sqrt(2 / pi)."""
_CUBIC = 0.044715


def _inner_tanh(x: Array, square: Array, out: Array) -> None:
    """The inner t = tanh(u), u = sqrt(2/pi) (x + 0.044715 x^3); ``out`` may be the array that holds the square of x."""
    np.multiply(square, _SCALE * _CUBIC, out=out)
    np.add(out, _SCALE, out=out)
    np.multiply(out, x, out=out)
    np.tanh(out, out=out)


def _tanh_gate(x: Array, out: Array) -> None:
    """(1 + t) / 2."""
    square = np.multiply(x, x, out=out)
    _inner_tanh(x, square, out)
    np.add(out, 1, out=out)
    np.multiply(out, 0.5, out=out)


def _tanh_slope(x: Array, out: Array) -> None:
    """(1 + t) / 2 + x (1 - t^2) u' / 2 = (1 + t) (1/2 + (1 - t) x u' / 2)."""
    t = np.empty_like(x)
    square = np.multiply(x, x, out=out)
    _inner_tanh(x, square, t)
    np.multiply(square, 1.5 * _SCALE * _CUBIC, out=out)
    np.add(out, 0.5 * _SCALE, out=out)
    np.multiply(out, x, out=out)
    rest = np.subtract(1, t, out=np.empty_like(t))
    np.multiply(out, rest, out=out)
    np.add(out, 0.5, out=out)
    np.add(t, 1, out=t)
    np.multiply(out, t, out=out)


class Silu(Elementwise):
    """x sigma(x). Keeps its input."""

    name = "silu"
    source = "Elfwing et al. 2017, arXiv 1702.03118"
    saves = {"input": ("input",)}
    operations = 4

    def forward(self, input: Array) -> Array:
        out = np.empty_like(input)
        if compiled.run("silu", input, out):
            return out
        _sigmoid(input, out)
        return np.multiply(out, input, out=out)

    def vjp(self, d_out: Array, input: Array) -> Array:
        slope = np.empty_like(input)  # sigma (1 + x (1 - sigma))
        if compiled.run("silu_gradient", d_out, input, slope):
            return slope
        gate = _sigmoid(input, np.empty_like(input))
        np.subtract(1, gate, out=slope)
        np.multiply(slope, input, out=slope)
        np.add(slope, 1, out=slope)
        np.multiply(slope, gate, out=slope)
        return np.multiply(slope, d_out, out=slope)


class Softplus(Elementwise):
    """log(1 + e^x), without overflow. Keeps its input."""

    name = "softplus"
    source = "d softplus/dx = sigma(x)"
    saves = {"input": ("input",)}
    operations = 4

    def forward(self, input: Array) -> Array:
        return np.logaddexp(input, np.zeros((), input.dtype))

    def vjp(self, d_out: Array, input: Array) -> Array:
        slope = _sigmoid(input, np.empty_like(input))
        return np.multiply(slope, d_out, out=slope)


gelu = Gelu()
leaky_relu = LeakyRelu()
relu = Relu()
relu_bits = ReluBits()
sigmoid = Sigmoid()
silu = Silu()
softplus = Softplus()
tanh = Tanh()
