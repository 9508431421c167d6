"""Losses: scalars at which backward begins."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.ops.indexing import check_indices
from memback.ops.workspace import accumulator, average, parts, wide

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "mse", "sqerr"]


class Sqerr(Op):
    """Half the summed squared error, L = 1/2 sum_i (f_i - y_i)^2, for the input f and the target y."""

    name = "sqerr"
    source = "Eqs. 10b, 29"
    saves = {"input": ("input", "target"), "target": ("input", "target")}
    renamed = {"f": "input", "y": "target"}

    def forward(self, input: Array, target: Array) -> Array:
        _same_shape(input, target)
        difference = np.subtract(input, target)
        difference *= difference
        dtype = accumulator(difference.dtype)
        half = np.multiply(np.sum(difference, dtype=dtype), 0.5)
        return half if dtype is None else half.astype(difference.dtype)

    def vjp(self, d_out: Array, needs: Any, input: Array, target: Array) -> tuple[Array | None, Array | None]:
        d_input = np.subtract(input, target)
        d_input *= d_out
        return (d_input if needs.input else None), (np.negative(d_input) if needs.target else None)

    def flops(self, input: Array) -> int:
        return 3 * input.size + 1

    def closed_jacobian(self, input: Array, target: Array) -> tuple[Array, Array]:
        """dL/df_i = f_i - y_i and dL/dy_i = y_i - f_i, from Eq. 10b."""
        return np.subtract(input, target), np.subtract(target, input)


class Mse(Op):
    """The mean squared error over all elements."""

    name = "mse"
    source = "L = <(f - y)^2>, dL/df_i = 2 (f_i - y_i) / n"
    saves = {"input": ("input", "target"), "target": ("input", "target")}

    def forward(self, input: Array, target: Array) -> Array:
        _same_shape(input, target)
        difference = np.subtract(input, target)
        difference *= difference
        return cast(Array, average(difference))

    def vjp(self, d_out: Array, needs: Any, input: Array, target: Array) -> tuple[Array | None, Array | None]:
        d_input = np.subtract(input, target)
        d_input *= np.multiply(d_out, 2 / max(1, input.size), dtype=wide(d_out.dtype))
        return (d_input if needs.input else None), (np.negative(d_input) if needs.target else None)

    def flops(self, input: Array) -> int:
        return 3 * input.size + 1


def _same_shape(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ValueError(f"the two must have the same shape, not {a.shape} and {b.shape}")


class CrossEntropy(Op):
    """-log softmax(input)[target], averaged or summed over the targets.

    ``input`` is (n, classes), (classes,) or (n, classes, d1, ...); ``target`` holds class numbers of the input's shape
    without the class dimension. Targets equal to ``ignore_index`` count nowhere; where none is left, the loss is 0 (in
    PyTorch its mean is NaN). Keeps the softmax and the targets: the gradient is (softmax - one-hot target) / number of
    targets.
    """

    name = "cross_entropy"
    source = "L = -log softmax(x)_y, dL/dx_i = softmax(x)_i - delta_iy; Bridle 1990, doi 10.1007/978-3-642-76153-9_28"
    saves = {"input": ("probabilities", "target", "counted")}
    residuals = ("probabilities", "counted")

    def forward(
        self,
        input: Array,
        target: Array,
        ignore_index: int = -100,
        reduction: Literal["mean", "sum"] = "mean",
        *,
        keep: bool,
    ) -> tuple[Array, Array, Array]:
        axis = _class_axis(input, target)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"`reduction` (={reduction!r}) must be 'mean' or 'sum'")
        valid = np.not_equal(target, ignore_index)
        classes = np.multiply(target, valid)
        check_indices("target", classes, input.shape[axis])
        picked = np.expand_dims(classes, axis)
        if wide(input.dtype) == input.dtype:
            probabilities, losses = _softmax_and_losses(input, picked, axis)
        else:
            probabilities, losses = _in_parts(input, picked, axis)
        np.multiply(losses, np.expand_dims(valid, axis), out=losses)
        count = np.maximum(np.sum(valid), 1) if reduction == "mean" else np.ones_like(input, shape=())
        counted = count.astype(losses.dtype)
        return np.divide(np.sum(losses), counted).astype(input.dtype, copy=False), probabilities, counted

    def vjp(
        self, d_out: Array, probabilities: Array, target: Array, counted: Array, ignore_index: int
    ) -> tuple[Array, None]:
        axis = _class_axis(probabilities, target)
        valid = np.not_equal(target, ignore_index)
        picked = np.expand_dims(np.multiply(target, valid), axis)
        d_input = np.copy(probabilities)
        at_target = np.take_along_axis(probabilities, picked, axis)
        np.subtract(at_target, 1, out=at_target)
        np.put_along_axis(d_input, picked, at_target, axis)
        scale = np.multiply(np.expand_dims(valid, axis), np.divide(d_out, counted), dtype=wide(d_input.dtype))
        return np.multiply(d_input, scale, out=d_input), None

    def flops(self, input: Array) -> int:
        return 5 * input.size


def _softmax_and_losses(x: Array, picked: Array, axis: int) -> tuple[Array, Array]:
    """softmax(x) along ``axis``, and -log of what is ``picked`` of it, both in the wide type."""
    probabilities = np.subtract(x, np.max(x, axis=axis, keepdims=True), dtype=wide(x.dtype))
    chosen = np.take_along_axis(probabilities, picked, axis)
    np.exp(probabilities, out=probabilities)
    total = np.sum(probabilities, axis=axis, keepdims=True)
    np.divide(probabilities, total, out=probabilities)
    np.log(total, out=total)
    return probabilities, np.subtract(total, chosen, out=total)


def _in_parts(x: Array, picked: Array, axis: int) -> tuple[Array, Array]:
    """The same of a part of a narrow ``x`` at a time, with the softmax rounded to its type."""
    probabilities = np.empty_like(x)
    losses = np.empty_like(x, shape=picked.shape, dtype=wide(x.dtype))
    for part in parts(x) if axis else (...,):
        made, losses[part] = _softmax_and_losses(x[part], picked[part], axis)
        np.copyto(probabilities[part], made, casting="same_kind")
        del made  # before the next part's
    return probabilities, losses


def _class_axis(input: Array, target: Array) -> int:
    axis = 0 if input.ndim == 1 else 1
    if target.dtype.kind not in "iu":
        raise ValueError(f"`target` must hold class numbers (integers), not {target.dtype}")
    if target.shape != input.shape[:axis] + input.shape[axis + 1 :]:
        raise ValueError(
            f"`target` of shape {target.shape} does not fit `input` of shape {input.shape}, which has its classes along"
            f" dimension {axis}"
        )
    return axis


class BinaryCrossEntropyWithLogits(Op):
    """-(y log sigma(x) + (1 - y) log(1 - sigma(x))), averaged over all elements: max(x, 0) - x y + log(1 + e^-|x|).

    Keeps the logits and the targets; dL/dx = (sigma(x) - y) / n and dL/dy = -x / n.
    """

    name = "binary_cross_entropy_with_logits"
    source = "L = <max(x, 0) - x y + log(1 + e^-|x|)>, dL/dx_i = (sigma(x_i) - y_i) / n"
    saves = {"input": ("input", "target"), "target": ("input",)}

    def forward(self, input: Array, target: Array) -> Array:
        _same_shape(input, target)
        losses = np.absolute(input, out=np.empty_like(input))
        np.negative(losses, out=losses)
        np.exp(losses, out=losses)
        np.log1p(losses, out=losses)
        np.add(losses, np.maximum(input, 0), out=losses)
        np.subtract(losses, np.multiply(input, target), out=losses)
        return cast(Array, average(losses))

    def vjp(self, d_out: Array, needs: Any, input: Array, target: Array) -> tuple[Array | None, Array | None]:
        scale = np.divide(d_out, max(1, input.size), dtype=wide(d_out.dtype))
        d_target = np.multiply(input, np.negative(scale), out=np.empty_like(input)) if needs.target else None
        if not needs.input:
            return None, d_target
        d_input = np.multiply(input, 0.5, out=np.empty_like(input))  # sigma(x) = (1 + tanh(x/2)) / 2 does not overflow
        np.tanh(d_input, out=d_input)
        np.add(d_input, 1, out=d_input)
        np.multiply(d_input, 0.5, out=d_input)
        np.subtract(d_input, target, out=d_input)
        return np.multiply(d_input, scale, out=d_input), d_target

    def flops(self, input: Array) -> int:
        return 7 * input.size


binary_cross_entropy_with_logits = BinaryCrossEntropyWithLogits()
cross_entropy = CrossEntropy()
mse = Mse()
sqerr = Sqerr()
