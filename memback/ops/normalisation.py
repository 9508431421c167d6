"""Normalisations: y = z weight + bias with z = (x - mean) rstd and rstd = 1 / sqrt(variance + eps).

They differ in the elements over which mean and variance are taken. Each brings its input into a view whose first
dimension is worked off in pieces and whose other dimensions hold what is averaged over, so that no temporary of the
input's size is made. What is kept is the input, which the layer before has made anyway, and one or two numbers for each
mean, in float32 at least.

With g = dL/dy weight, and averages <.> over the same elements as the mean,

    dL/dx = rstd (g - <g> - z <g z>),    dL/dweight = sum dL/dy z,    dL/dbias = sum dL/dy,

without <g> where no mean is subtracted, and without both where mean and variance are constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.engine.state import current, is_recomputing
from memback.ops import compiled
from memback.ops.row_sums import row_dot, row_sum
from memback.ops.workspace import parts, wide

__all__ = ["batch_norm", "group_norm", "layer_norm", "rms_norm"]


class _Form(NamedTuple):
    """How an input is seen: as ``shape`` (its first two dimensions then exchanged if ``swapped``).

    Averages run over ``axes`` of this view. Weight and bias are of shape ``features``, in the view ``parameter``.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    features: tuple[int, ...]
    parameter: tuple[int, ...]
    swapped: bool = False

    def view(self, x: Array) -> Array:
        x = np.reshape(x, self.shape)
        return np.swapaxes(x, 0, 1) if self.swapped else x

    def spread(self, parameter: Array | None) -> Array | None:
        return None if parameter is None else np.reshape(parameter, self.parameter)

    def back(self, x: Array, shape: tuple[int, ...]) -> Array:
        return np.reshape(np.swapaxes(x, 0, 1) if self.swapped else x, shape)


def _of(parameter: Array, part: Any) -> Array:
    return parameter if parameter.shape[0] == 1 else parameter[part]


def _one_each(seen: Array, form: _Form) -> Array:
    """Room for one number for each mean."""
    shape = tuple(1 if d in form.axes else n for d, n in enumerate(seen.shape))
    return np.empty_like(seen, shape=shape, dtype=wide(seen.dtype), order="C")


def _average(x: Array, axes: tuple[int, ...], out: Array | None = None) -> Array:
    """<x>, in the type of ``out`` if that is given."""
    dtype = x.dtype if out is None else out.dtype
    if axes != (x.ndim - 1,) or dtype != x.dtype:
        return np.mean(x, axis=axes, dtype=dtype, keepdims=True, out=out)
    total = row_sum(x, out)
    return np.divide(total, x.shape[-1], out=total)


def _average_product(x: Array, y: Array, axes: tuple[int, ...], out: Array | None = None) -> Array:
    """<x y>."""
    if axes != (x.ndim - 1,):
        return np.mean(np.multiply(x, y), axis=axes, keepdims=True, out=out)
    total = row_dot(x, y, out)
    return np.divide(total, x.shape[-1], out=total)


def _invert(variance: Array, eps: float, out: Array) -> None:
    """1 / sqrt(variance + eps)."""
    np.add(variance, eps, out=out)
    np.sqrt(out, out=out)
    np.reciprocal(out, out=out)


def _normalise(
    seen: Array,
    form: _Form,
    mean: Array | None,
    rstd: Array,
    variance: Array,
    eps: float,
    weight: Array | None,
    bias: Array | None,
    out: Array,
) -> None:
    """Write the output, mean (None: taken as 0), variance and rstd; the last two may be one array."""
    scale, shift = form.spread(weight), form.spread(bias)
    for part in parts(seen):
        x = seen[part]
        if mean is None:
            x = x.astype(rstd.dtype, copy=False)
        else:
            _average(x, form.axes, mean[part])
            x = np.subtract(x, mean[part], out=_room(out[part], rstd))
        _average_product(x, x, form.axes, variance[part])
        _invert(variance[part], eps, rstd[part])
        _scale_and_shift(x, part, rstd, scale, shift, out[part])


def _normalise_by(
    seen: Array, form: _Form, mean: Array, rstd: Array, weight: Array | None, bias: Array | None, out: Array
) -> None:
    """Write the output for a mean and rstd that are known."""
    scale, shift = form.spread(weight), form.spread(bias)
    for part in parts(seen):
        centred = np.subtract(seen[part], mean[part], out=_room(out[part], rstd))
        _scale_and_shift(centred, part, rstd, scale, shift, out[part])


def _room(out: Array, like: Array) -> Array | None:
    """``out`` itself if what is calculated in the type of ``like`` may be written there."""
    return out if out.dtype == like.dtype else None


def _scale_and_shift(
    centred: Array, part: Any, rstd: Array, scale: Array | None, shift: Array | None, out: Array
) -> None:
    y = np.multiply(centred, rstd[part], out=_room(out, rstd))
    if scale is not None:
        np.multiply(y, _of(scale, part), out=y)
    if shift is not None:
        np.add(y, _of(shift, part), out=y)
    if y is not out:
        np.copyto(out, y, casting="same_kind")


class _SavedValues(NamedTuple):
    """What a call kept: its input in the form's view (None if not needed), mean (None if not subtracted), rstd."""

    x: Array | None
    mean: Array | None
    rstd: Array


class _Gradients:
    """dL/dx, dL/dweight and dL/dbias of one call, each if needed, computed piece by piece."""

    def __init__(self, d_out: Array, form: _Form, needs: Any, constant: bool = False) -> None:
        self.form = form
        self.d_out = form.view(d_out)
        self.shape = d_out.shape
        self.constant = constant
        self.x = np.empty_like(self.d_out) if needs.input else None
        self.weight = self._zeros() if needs.weight else None
        self.bias = self._zeros() if getattr(needs, "bias", False) else None

    def _zeros(self) -> Array:
        return np.zeros_like(self.d_out, shape=self.form.parameter, dtype=wide(self.d_out.dtype), order="C")

    def collect(
        self, x: Array | None, weight: Array | None, mean: Array | None, rstd: Array | None
    ) -> tuple[Array | None, ...]:
        """The three gradients, from what was saved for those that are needed."""
        saved = None if rstd is None else _SavedValues(None if x is None else self.form.view(x), mean, rstd)
        scale = self.form.spread(weight)
        if not self._run_kernels(saved, scale):
            for part in parts(self.d_out):
                if self.bias is not None:
                    self._sum(self.bias, part, self.d_out[part])
                if saved is not None:
                    self._collect_part(saved, scale, part)
        return (
            None if self.x is None else self.form.back(self.x, self.shape),
            None if self.weight is None else np.reshape(self.weight, self.form.features),
            None if self.bias is None else np.reshape(self.bias, self.form.features),
        )

    def _run_kernels(self, saved: _SavedValues | None, scale: Array | None) -> bool:
        """Use compiled kernels if they are on and all gradients of a norm of rows are needed; return whether."""
        if len(self.form.shape) != 2 or saved is None or saved.x is None or self.weight is None:
            return False
        given = (self.d_out, saved.x)
        if saved.mean is None:
            return compiled.run("rms_norm_gradient", *given, scale, saved.rstd, self.x) and compiled.run(
                "rms_norm_sums", *given, saved.rstd, self.weight
            )
        statistics = (saved.mean, saved.rstd)
        return (
            self.bias is not None
            and compiled.run("layer_norm_gradient", *given, scale, *statistics, self.x)
            and compiled.run("layer_norm_sums", *given, *statistics, self.weight, self.bias)
        )

    def _sum(self, total: Array, part: Any, terms: Array) -> None:
        fixed = tuple(d for d, n in enumerate(total.shape) if n == 1)
        target = _of(total, part)
        np.add(target, np.sum(terms, axis=fixed, dtype=total.dtype, keepdims=True), out=target)

    def _collect_part(self, saved: _SavedValues, scale: Array | None, part: Any) -> None:
        """By c = x - mean and e = dL/dy rstd: dL/dweight = sum e c, dL/dx = g - <g> - c rstd^2 <g c> with g = e weight.

        The same as above, with rstd multiplied into what it is a factor of all the way.
        """
        rstd = saved.rstd[part]
        c = self._centred(saved, part)
        e = np.multiply(self.d_out[part], rstd, out=None if self.x is None else _room(self.x[part], rstd))
        if self.weight is not None and c is not None:
            self._sum(self.weight, part, np.multiply(e, c))
        if self.x is None:
            return
        g = e if scale is None else np.multiply(e, _of(scale, part), out=e)
        if not self.constant and c is not None:
            self._project(g, c, rstd, centred=saved.mean is not None)
        if g.dtype != self.x.dtype:
            np.copyto(self.x[part], g, casting="same_kind")

    def _centred(self, saved: _SavedValues, part: Any) -> Array | None:
        """c, where the input was kept."""
        if saved.x is None:
            return None
        c = saved.x[part].astype(saved.rstd.dtype, copy=False)
        return c if saved.mean is None else np.subtract(c, saved.mean[part])

    def _project(self, g: Array, c: Array, rstd: Array, centred: bool) -> None:
        """Turn g into g - <g> - c rstd^2 <g c> in place; a centred c is used up."""
        along = _average_product(g, c, self.form.axes)
        np.multiply(along, rstd, out=along)
        np.multiply(along, rstd, out=along)
        step = np.multiply(c, along, out=c if centred else None)
        if centred:
            np.add(step, _average(g, self.form.axes), out=step)
        np.subtract(g, step, out=g)


# -- over the last dimensions of each row


def _row_form(name: str, x: Array, normalized_shape: int | Sequence[int]) -> _Form:
    features = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not features or x.shape[-len(features) :] != features:
        raise ValueError(f"{name}: `normalized_shape` (={features}) must end the input's shape, which is {x.shape}")
    size = prod(features)
    return _Form((prod(x.shape[: -len(features)]), size), (1,), features, (1, size))


def _check_parameters(name: str, features: tuple[int, ...], weight: Array | None, bias: Array | None = None) -> None:
    for which, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.shape != features:
            raise ValueError(f"{name}: `{which}` has shape {parameter.shape}, it must have {features}")


class LayerNorm(Op):
    """Mean 0 and variance 1 over the last dimensions: (x - mean) / sqrt(variance + eps) weight + bias.

    Input (..., *normalized_shape), weight and bias of shape ``normalized_shape`` or None; the output has the input's
    shape and dtype. Keeps its input, and mean and 1/sqrt(variance + eps) of each row, in float32 at least.
    """

    name = "layer_norm"
    source = "Ba, Kiros & Hinton 2016, arXiv 1607.06450"
    residuals = ("mean", "rstd")
    saves = {"input": ("input", "weight", "mean", "rstd"), "weight": ("input", "mean", "rstd"), "bias": ()}

    def forward(
        self,
        input: Array,
        normalized_shape: int | Sequence[int],
        weight: Array | None = None,
        bias: Array | None = None,
        eps: float = 1e-5,
    ) -> tuple[Array, ...]:
        form = _row_form(self.name, input, normalized_shape)
        _check_parameters(self.name, form.features, weight, bias)
        seen = form.view(input)
        mean, rstd, out = _one_each(seen, form), _one_each(seen, form), np.empty_like(seen)
        if not compiled.run("layer_norm", seen, weight, bias, eps, mean, rstd, out):
            _normalise(seen, form, mean, rstd, rstd, eps, weight, bias, out)
        return form.back(out, input.shape), mean, rstd

    def vjp(
        self,
        d_out: Array,
        needs: Any,
        input: Array | None,
        weight: Array | None,
        mean: Array | None,
        rstd: Array | None,
        normalized_shape: int | Sequence[int],
    ) -> tuple[Array | None, ...]:
        form = _row_form(self.name, d_out, normalized_shape)
        return _Gradients(d_out, form, needs).collect(input, weight, mean, rstd)

    def flops(self, out: Array, weight: Array | None, bias: Array | None) -> int:
        return (6 + (weight is not None) + (bias is not None)) * out.size


class RMSNorm(Op):
    """Root mean square 1 over the last dimensions: x / sqrt(<x^2> + eps) weight.

    Input (..., *normalized_shape), weight of shape ``normalized_shape`` or None; the output has the input's shape and
    dtype. Without ``eps`` the spacing of numbers at 1 is taken (float32's for float16 and bfloat16). Keeps its input
    and one number a row, in float32 at least.
    """

    name = "rms_norm"
    source = "Zhang & Sennrich 2019, arXiv 1910.07467"
    residuals = ("rstd",)
    saves = {"input": ("input", "weight", "rstd"), "weight": ("input", "rstd")}

    def forward(
        self,
        input: Array,
        normalized_shape: int | Sequence[int],
        weight: Array | None = None,
        eps: float | None = None,
    ) -> tuple[Array, Array]:
        form = _row_form(self.name, input, normalized_shape)
        _check_parameters(self.name, form.features, weight)
        eps = float(np.finfo(wide(input.dtype)).eps) if eps is None else eps
        seen = form.view(input)
        rstd, out = _one_each(seen, form), np.empty_like(seen)
        if not compiled.run("rms_norm", seen, weight, eps, rstd, out):
            _normalise(seen, form, None, rstd, rstd, eps, weight, None, out)
        return form.back(out, input.shape), rstd

    def vjp(
        self,
        d_out: Array,
        needs: Any,
        input: Array | None,
        weight: Array | None,
        rstd: Array | None,
        normalized_shape: int | Sequence[int],
    ) -> tuple[Array | None, ...]:
        form = _row_form(self.name, d_out, normalized_shape)
        return _Gradients(d_out, form, needs).collect(input, weight, None, rstd)[:2]

    def flops(self, out: Array, weight: Array | None) -> int:
        return (3 + (weight is not None)) * out.size


# -- over channels of images


class GroupNorm(Op):
    """Mean 0 and variance 1 over each of ``num_groups`` groups of channels of each image.

    Input (N, C, ...), weight and bias (C,) or None; the output has the input's shape and dtype. Keeps its input, and
    mean and 1/sqrt(variance + eps) of each group of each image, in float32 at least.
    """

    name = "group_norm"
    source = "Wu & He 2018, arXiv 1803.08494"
    residuals = ("mean", "rstd")
    saves = {"input": ("input", "weight", "mean", "rstd"), "weight": ("input", "mean", "rstd"), "bias": ()}

    def forward(
        self,
        input: Array,
        num_groups: int,
        weight: Array | None = None,
        bias: Array | None = None,
        eps: float = 1e-5,
    ) -> tuple[Array, ...]:
        form = self._form(input, num_groups)
        _check_parameters(self.name, form.features, weight, bias)
        seen = form.view(input)
        mean, rstd, out = _one_each(seen, form), _one_each(seen, form), np.empty_like(seen)
        _normalise(seen, form, mean, rstd, rstd, eps, weight, bias, out)
        return form.back(out, input.shape), mean, rstd

    def _form(self, x: Array, groups: int) -> _Form:
        if x.ndim < 2:
            raise ValueError(f"group_norm: the input must have shape (N, C, ...), it has {x.shape}")
        if groups < 1 or x.shape[1] % groups:
            raise ValueError(f"group_norm: the channels (={x.shape[1]}) must be divisible by `num_groups` (={groups})")
        each = x.shape[1] // groups
        shape = (x.shape[0], groups, each, prod(x.shape[2:]))
        return _Form(shape, (2, 3), (x.shape[1],), (1, groups, each, 1))

    def vjp(
        self,
        d_out: Array,
        needs: Any,
        input: Array | None,
        weight: Array | None,
        mean: Array | None,
        rstd: Array | None,
        num_groups: int,
    ) -> tuple[Array | None, ...]:
        return _Gradients(d_out, self._form(d_out, num_groups), needs).collect(input, weight, mean, rstd)

    def flops(self, out: Array, weight: Array | None, bias: Array | None) -> int:
        return (6 + (weight is not None) + (bias is not None)) * out.size


class BatchNorm(Op):
    """Mean 0 and variance 1 of each channel: over the batch in training, by running statistics otherwise.

    Input (N, C) or (N, C, ...); running_mean, running_var, weight and bias (C,) or None; the output has the input's
    shape and dtype. In training the running statistics are moved towards the batch's, in place:
    running = (1 - momentum) running + momentum batch, with the variance unbiased. This is a side effect of the forward
    pass: it happens once, neither again when a checkpoint recomputes nor in :meth:`backward` or :meth:`jacobian`.
    In training it keeps its input, and mean and 1/sqrt(variance + eps) of each channel, in float32 at least. Outside of
    training its output is linear in the input: by the input it keeps nothing but the running variance, which is there
    anyway; by the weight the input and the running statistics.

    Raises:
        ValueError: no running statistics outside of training, or a single value a channel in training.
    """

    name = "batch_norm"
    source = "Ioffe & Szegedy 2015, arXiv 1502.03167"
    residuals = ("mean", "rstd")
    saves = {"input": ("weight", "running_var"), "weight": ("input", "running_mean", "running_var"), "bias": ()}
    saves_if = {
        "training": {"input": ("input", "weight", "mean", "rstd"), "weight": ("input", "mean", "rstd"), "bias": ()}
    }

    def forward(
        self,
        input: Array,
        running_mean: Array | None,
        running_var: Array | None,
        weight: Array | None = None,
        bias: Array | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> tuple[Array, Array | None, Array | None]:
        form = self._form(input)
        _check_parameters(self.name, form.features, weight, bias)
        seen = form.view(input)
        if training:
            count = input.size // max(1, input.shape[1])
            if count < 2:
                raise ValueError(f"batch_norm: training needs more than one value a channel, it has {input.shape}")
            mean, variance, rstd = (_one_each(seen, form) for _ in range(3))
            out = np.empty_like(seen)
            _normalise(seen, form, mean, rstd, variance, eps, weight, bias, out)
            self._move(running_mean, mean, momentum)
            self._move(running_var, np.multiply(variance, count / (count - 1)), momentum)
            return form.back(out, input.shape), mean, rstd
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm: outside of training `running_mean` and `running_var` are needed")
        dtype = wide(input.dtype)
        mean, rstd = _spread(form, running_mean, dtype), self._rstd(form, running_var, eps, dtype)
        out = np.empty_like(seen)
        _normalise_by(seen, form, mean, rstd, weight, bias, out)
        return form.back(out, input.shape), None, None

    def moved(self, values: Sequence[Any]) -> tuple[Any, ...]:
        _, running_mean, running_var, _, _, training, *_ = values
        return (running_mean, running_var) if training and running_mean is not None else ()

    def _move(self, running: Array | None, batch: Array, momentum: float) -> None:
        if running is None or is_recomputing():
            return
        step = np.subtract(np.reshape(batch, running.shape), running)
        np.multiply(step, momentum, out=step)
        np.add(running, step, out=running, casting="same_kind")

    def _rstd(self, form: _Form, running_var: Array, eps: float, dtype: Any) -> Array:
        rstd = _spread(form, running_var, dtype)
        _invert(rstd, eps, rstd)
        return rstd

    def _form(self, x: Array) -> _Form:
        if x.ndim < 2:
            raise ValueError(f"batch_norm: the input must have shape (N, C) or (N, C, ...), it has {x.shape}")
        n, channels = x.shape[:2]
        return _Form((n, channels, prod(x.shape[2:])), (1, 2), (channels,), (channels, 1, 1), swapped=True)

    def vjp(
        self,
        d_out: Array,
        needs: Any,
        input: Array | None,
        weight: Array | None,
        mean: Array | None,
        rstd: Array | None,
        running_mean: Array | None,
        running_var: Array | None,
        training: bool,
        eps: float,
    ) -> tuple[Array | None, ...]:
        form = self._form(d_out)
        gradients = _Gradients(d_out, form, needs, constant=not training)
        if running_var is not None:
            dtype = wide(d_out.dtype)
            mean = None if running_mean is None else _spread(form, running_mean, dtype)
            rstd = self._rstd(form, running_var, eps, dtype)
        d_input, d_weight, d_bias = gradients.collect(input, weight, mean, rstd)
        return d_input, None, None, d_weight, d_bias

    def flops(self, out: Array, weight: Array | None, bias: Array | None, training: bool) -> int:
        return ((6 if training else 2) + (weight is not None) + (bias is not None)) * out.size

    def makes_residuals(self, training: bool) -> bool:
        return training

    def backward(self, d_out: Any, *args: Any, **kwargs: Any) -> Any:
        """As for every op; the running statistics stay as they are."""
        with _without_side_effects():
            return super().backward(d_out, *args, **kwargs)

    def jacobian(self, *args: Any, **kwargs: Any) -> Any:
        """As for every op; the running statistics stay as they are."""
        with _without_side_effects():
            return super().jacobian(*args, **kwargs)


def _spread(form: _Form, running: Array, dtype: Any) -> Array:
    """A copy of running statistics in the form's view."""
    return np.reshape(running.astype(dtype), form.parameter)


@contextmanager
def _without_side_effects() -> Iterator[None]:
    state = current()
    before, state.recomputing = state.recomputing, True
    try:
        yield
    finally:
        state.recomputing = before


layer_norm = LayerNorm()
rms_norm = RMSNorm()
group_norm = GroupNorm()
batch_norm = BatchNorm()
