"""Convolution, pooling and upsampling of images, in PyTorch's layout (N, C, height, width).

Convolution and pooling look at each offset (i, j) of the kernel in turn: there, output pixel (y, x) sees input pixel
(y stride + i dilation - padding, ...), which a strided slice picks for all y at once. Where that falls outside of the
image there is nothing to see, so no padded copy is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.ops.workspace import pieces, slices, wide

__all__ = ["avg_pool2d", "conv2d", "max_pool2d", "upsample"]

Pair: TypeAlias = "int | tuple[int, int]"
"""One number for both height and width, or one for each."""

PIECE = 2**23
"""Bytes of the columns made at a time by a convolution, or one image's where that is more."""


def _pair(name: str, value: Any, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, (int, np.integer)) else tuple(value)
    if len(pair) != 2 or any(n < least for n in pair):
        raise ValueError(f"`{name}` (={value}) must be one or two integers of at least {least}")
    return pair[0], pair[1]


class _Axis(NamedTuple):
    """One axis of a convolution, height or width: sizes of input and kernel, stride, padding and dilation."""

    size: int
    kernel: int
    stride: int
    padding: int
    dilation: int = 1
    ceil: bool = False

    @property
    def out(self) -> int:
        """Size of the output."""
        reach = self.dilation * (self.kernel - 1) + 1
        room = self.size + 2 * self.padding - reach
        if room < 0:
            raise ValueError(f"the kernel reaches over {reach} pixels, the padded image has {room + reach}")
        steps = room // self.stride
        if self.ceil and room % self.stride and (steps + 1) * self.stride < self.size + self.padding:
            steps += 1  # a last window that sees more than padding
        return steps + 1

    def seen(self, offset: int) -> tuple[slice, slice]:
        """At a kernel offset: the outputs that see a pixel, and the pixels that they see."""
        shift = offset * self.dilation - self.padding
        first = max(0, -(shift // self.stride))
        end = max(first, min(self.out, (self.size - 1 - shift) // self.stride + 1))
        start = first * self.stride + shift
        return slice(first, end), slice(start, start + (end - first) * self.stride, self.stride)

    def counts(self, padding: bool, dtype: Any) -> Array:
        """The number of pixels that each output sees, with or without the padding."""
        starts = [i * self.stride - self.padding for i in range(self.out)]
        last = self.size + self.padding if padding else self.size
        counted = [min(start + self.kernel, last) - (start if padding else max(start, 0)) for start in starts]
        return np.array(counted, dtype)


class _Kernel(NamedTuple):
    """A kernel on its way over images of a given size."""

    vertical: _Axis
    horizontal: _Axis

    @classmethod
    def over(
        cls, shape: tuple[int, ...], size: Any, stride: Any, padding: Any, dilation: Any = 1, ceil: bool = False
    ) -> _Kernel:
        """Check the attributes of an op on an input of ``shape``."""
        if len(shape) != 4:
            raise ValueError(f"the input must have shape (N, C, height, width), it has {shape}")
        sizes, strides = _pair("kernel_size", size, 1), _pair("stride", stride, 1)
        paddings, dilations = _pair("padding", padding, 0), _pair("dilation", dilation, 1)
        return cls(*map(_Axis, shape[2:], sizes, strides, paddings, dilations, (ceil, ceil)))

    @property
    def out(self) -> tuple[int, int]:
        """Height and width of the output."""
        return self.vertical.out, self.horizontal.out

    @property
    def offsets(self) -> int:
        """Number of offsets in the kernel."""
        return self.vertical.kernel * self.horizontal.kernel

    def walk(self) -> Iterator[tuple[int, int, Any, Any]]:
        """Each offset (i, j): where the outputs and where the pixels lie, as indices of (..., height, width)."""
        for i in range(self.vertical.kernel):
            rows_out, rows = self.vertical.seen(i)
            for j in range(self.horizontal.kernel):
                columns_out, columns = self.horizontal.seen(j)
                yield i, j, (..., rows_out, columns_out), (..., rows, columns)


# -- convolution


class Conv2d(Op):
    """out[n, o, y, x] = bias[o] + sum over c, i, j of weight[o, c, i, j] input[n, c, y s + i d - p, x s + j d - p].

    Input (N, C, H, W), weight (O, C / groups, kernel height, kernel width), bias (O,) or None; output (N, O, H', W')
    with H' = (H + 2 p - d (kernel height - 1) - 1) // s + 1, of the input's dtype. ``stride`` s, ``padding`` p and
    ``dilation`` d are a number or a pair. Each group of output channels sees its own group of input channels.

    Done as a matrix product with the pixels under the kernel laid out in columns, for as many images at a time as
    8 MiB of columns hold (one at least), in float32 for float16 and bfloat16. Keeps the input for the weight and the
    weight for the input; columns are made again in backward.
    """

    name = "conv2d"
    source = "LeCun et al. 1998, doi 10.1109/5.726791; as a matrix product: Chellapilla, Puri & Simard 2006"
    saves = {"input": ("weight",), "weight": ("input",), "bias": ()}
    matrix_product = True

    def forward(
        self,
        input: Array,
        weight: Array,
        bias: Array | None = None,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
    ) -> Array:
        _check_conv2d(input.shape, weight.shape, bias, groups)
        kernel = _Kernel.over(input.shape, weight.shape[2:], stride, padding, dilation)
        out = np.empty_like(input, shape=(input.shape[0], weight.shape[0], *kernel.out), order="C")
        w = _matrices(weight, groups)
        if _pointwise(kernel, input.dtype):
            np.matmul(w, _pixels(input, groups), out=_pixels(out, groups))
            if bias is not None:
                np.add(out, bias[:, None, None], out=out)
            return out
        for part in _images(input, kernel, input.shape):
            _convolve(input[part], w, bias, kernel, out[part])
        return out

    def vjp(
        self,
        d_out: Array,
        needs: Any,
        shapes: Any,
        input: Array | None,
        weight: Array | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
    ) -> tuple[Array | None, ...]:
        kernel = _Kernel.over(shapes[0], shapes[1][2:], stride, padding, dilation)
        dtype = wide(d_out.dtype)
        d_input = np.zeros_like(d_out, shape=shapes[0], order="C") if needs.input else None
        d_weight = np.zeros_like(d_out, shape=shapes[1], dtype=dtype, order="C") if needs.weight else None
        w = None if weight is None else _matrices(weight, groups)
        d_w = None if d_weight is None else _matrices(d_weight, groups)
        if _pointwise(kernel, d_out.dtype):
            _pull_back_pixels(d_out, input, w, groups, d_input, d_w)
        elif needs.input or needs.weight:
            for part in _images(d_out, kernel, shapes[0]):
                x = None if input is None else input[part]
                _pull_back_images(d_out[part], x, w, kernel, groups, None if d_input is None else d_input[part], d_w)
        d_bias = np.sum(d_out, axis=(0, 2, 3), dtype=dtype) if needs.bias else None
        return d_input, d_weight, d_bias

    def flops(self, weight: Array, bias: Array | None, out: Array) -> int:
        return 2 * out.size * prod(weight.shape[1:]) + (0 if bias is None else out.size)


def _check_conv2d(shape: tuple[int, ...], weight: tuple[int, ...], bias: Array | None, groups: int) -> None:
    if len(shape) != 4 or len(weight) != 4:
        raise ValueError(f"input and weight must have four dimensions, their shapes are {shape} and {weight}")
    if groups < 1 or shape[1] != weight[1] * groups or weight[0] % groups:
        raise ValueError(
            f"with `groups` (={groups}) a weight of shape {weight} needs {weight[1] * groups} input channels and output"
            f" channels divisible by groups; there are {shape[1]} and {weight[0]}"
        )
    if bias is not None and bias.shape != weight[:1]:
        raise ValueError(f"`bias` has shape {bias.shape}, it must have {weight[:1]}")


def _pointwise(kernel: _Kernel, dtype: Any) -> bool:
    """Whether each output pixel sees only its own input pixel, in a type that needs no conversion to be multiplied."""
    return all(axis[1:4] == (1, 1, 0) for axis in kernel) and wide(dtype) == dtype


def _matrices(weight: Array, groups: int) -> Array:
    """The weight as (groups, output channels of each, elements of its kernel)."""
    return np.reshape(weight, (groups, weight.shape[0] // groups, -1)).astype(wide(weight.dtype), copy=False)


def _pixels(x: Array, groups: int) -> Array:
    """Images as (N, groups, channels of each, pixels)."""
    n, channels, height, width = x.shape
    return np.reshape(np.ascontiguousarray(x, like=x), (n, groups, channels // groups, height * width))


def _images(like: Array, kernel: _Kernel, shape: tuple[int, ...]) -> Iterator[slice]:
    """Images in pieces whose columns take no more than PIECE bytes."""
    each = shape[1] * kernel.offsets * prod(kernel.out) * wide(like.dtype).itemsize
    return pieces(slices(shape[0], max(1, PIECE // max(1, each))), like)


def _columns(images: Array, kernel: _Kernel, groups: int) -> tuple[Array, Array]:
    """An empty array for the pixels under the kernel (C, i, j, N, y, x), and its view as a matrix for each group."""
    sizes = (images.shape[1], kernel.vertical.kernel, kernel.horizontal.kernel, images.shape[0], *kernel.out)
    columns = np.empty_like(images, shape=sizes, dtype=wide(images.dtype), order="C")
    return columns, np.reshape(columns, (groups, prod(sizes[:3]) // groups, prod(sizes[3:])))


def _gather(x: Array, kernel: _Kernel, columns: Array) -> None:
    if kernel.vertical.padding or kernel.horizontal.padding:
        columns.fill(0)
    source = np.swapaxes(x, 0, 1)
    for i, j, outputs, pixels in kernel.walk():
        columns[:, i, j][outputs] = source[pixels]


def _scatter(columns: Array, kernel: _Kernel, x: Array) -> None:
    """Add what _gather took from ``x``, which holds zeros, back to it."""
    total = x if x.dtype == columns.dtype else np.zeros_like(x, dtype=columns.dtype)
    target = np.swapaxes(total, 0, 1)
    for i, j, outputs, pixels in kernel.walk():
        np.add(target[pixels], columns[:, i, j][outputs], out=target[pixels])
    if total is not x:
        np.copyto(x, total, casting="same_kind")


def _convolve(x: Array, w: Array, bias: Array | None, kernel: _Kernel, out: Array) -> None:
    columns, matrix = _columns(x, kernel, len(w))
    _gather(x, kernel, columns)
    product = np.reshape(np.matmul(w, matrix), (out.shape[1], len(x), *kernel.out))
    shift = 0 if bias is None else bias[:, None, None, None]
    np.add(product, shift, out=np.swapaxes(out, 0, 1), casting="same_kind")


def _pull_back_images(
    d_out: Array, x: Array | None, w: Array | None, kernel: _Kernel, groups: int, d_x: Array | None, d_w: Array | None
) -> None:
    """Write dL/dx of some images, and add their share to dL/dw."""
    images = x if d_x is None else d_x
    assert images is not None
    columns, matrix = _columns(images, kernel, groups)
    g = np.empty_like(columns, shape=(d_out.shape[1], len(d_out), *kernel.out), order="C")
    np.copyto(g, np.swapaxes(d_out, 0, 1))
    g = np.reshape(g, (groups, g.shape[0] // groups, matrix.shape[2]))
    if d_w is not None and x is not None:
        _gather(x, kernel, columns)
        np.add(d_w, np.matmul(g, np.swapaxes(matrix, 1, 2)), out=d_w)
    if d_x is not None and w is not None:
        np.matmul(np.swapaxes(w, 1, 2), g, out=matrix)
        _scatter(columns, kernel, d_x)


def _pull_back_pixels(
    d_out: Array, x: Array | None, w: Array | None, groups: int, d_x: Array | None, d_w: Array | None
) -> None:
    """The same where each output pixel sees one input pixel, so that no columns are needed."""
    d_pixels = _pixels(d_out, groups)
    if d_x is not None and w is not None:
        np.matmul(np.swapaxes(w, 1, 2), d_pixels, out=_pixels(d_x, groups))
    if d_w is not None and x is not None:
        pixels = _pixels(x, groups)
        for n in pieces(range(len(pixels)), like=pixels):
            np.add(d_w, np.matmul(d_pixels[n], np.swapaxes(pixels[n], 1, 2)), out=d_w)


# -- pooling


class MaxPool2d(Op):
    """The largest pixel under the kernel; the first of them (row by row) where there are several, as in PyTorch.

    Input (N, C, H, W), output (N, C, H', W') of its dtype, with sizes as for :class:`Conv2d`, rounded up if
    ``ceil_mode``. The stride is the kernel's size unless given; padding, at most half of the kernel, is never largest.
    NaN counts as largest. Keeps where in the kernel the largest pixel was, in one byte for up to 256 offsets.
    """

    name = "max_pool2d"
    source = "Ranzato et al. 2007, doi 10.1109/CVPR.2007.383157"
    residuals = ("index",)
    saves = {"input": ("index",)}

    def forward(
        self,
        input: Array,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        ceil_mode: bool = False,
        keep: bool = True,
    ) -> tuple[Array, Array | None]:
        kernel = _pooling(input.shape, kernel_size, stride, padding, dilation, ceil_mode)
        shape = (*input.shape[:2], *kernel.out)
        out = np.full_like(input, -np.inf, shape=shape, order="C")
        places = np.min_scalar_type(kernel.offsets - 1)
        index = np.zeros_like(input, shape=shape, dtype=places, order="C") if keep else None
        better, nan = (np.empty_like(input, shape=shape, dtype=bool, order="C") for _ in range(2))
        for offset, (_, _, outputs, pixels) in enumerate(kernel.walk()):
            seen = input[pixels]
            np.greater(seen, out[outputs], out=better[outputs])
            np.not_equal(seen, seen, out=nan[outputs])  # np.isnan writes into some strided arrays wrongly
            np.logical_or(better[outputs], nan[outputs], out=better[outputs])
            np.copyto(out[outputs], seen, where=better[outputs])
            if index is not None:
                np.copyto(index[outputs], offset, where=better[outputs])
        return out, index

    def vjp(
        self,
        d_out: Array,
        shapes: Any,
        index: Array,
        kernel_size: Pair,
        stride: Pair | None,
        padding: Pair,
        dilation: Pair,
        ceil_mode: bool,
    ) -> Array:
        kernel = _pooling(shapes[0], kernel_size, stride, padding, dilation, ceil_mode)
        d_input = np.zeros_like(d_out, shape=shapes[0], dtype=wide(d_out.dtype), order="C")
        here = np.empty_like(index, dtype=bool)
        for offset, (_, _, outputs, pixels) in enumerate(kernel.walk()):
            np.equal(index, offset, out=here)
            np.add(d_input[pixels], d_out[outputs], out=d_input[pixels], where=here[outputs])
        return d_input.astype(d_out.dtype, copy=False)

    def flops(self, out: Array, kernel_size: Pair) -> int:
        return prod(_pair("kernel_size", kernel_size, 1)) * out.size


class AvgPool2d(Op):
    """The average of the pixels under the kernel; the padding's zeros are counted if ``count_include_pad``.

    Input (N, C, H, W), output (N, C, H', W') of its dtype, with sizes as for :class:`Conv2d`, rounded up if
    ``ceil_mode``. The stride is the kernel's size unless given. Keeps nothing: it is linear.
    """

    name = "avg_pool2d"
    source = "LeCun et al. 1998, doi 10.1109/5.726791 (subsampling)"
    saves = {"input": ()}

    def forward(
        self,
        input: Array,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> Array:
        kernel = _pooling(input.shape, kernel_size, stride, padding, 1, ceil_mode)
        shape, dtype = (*input.shape[:2], *kernel.out), wide(input.dtype)
        out = np.zeros_like(input, shape=shape, dtype=dtype, order="C")
        for _, _, outputs, pixels in kernel.walk():
            np.add(out[outputs], input[pixels], out=out[outputs])
        _divide_by_counts(out, kernel, count_include_pad)
        return out.astype(input.dtype, copy=False)

    def vjp(
        self,
        d_out: Array,
        shapes: Any,
        kernel_size: Pair,
        stride: Pair | None,
        padding: Pair,
        ceil_mode: bool,
        count_include_pad: bool,
    ) -> Array:
        kernel = _pooling(shapes[0], kernel_size, stride, padding, 1, ceil_mode)
        share = d_out.astype(wide(d_out.dtype))
        _divide_by_counts(share, kernel, count_include_pad)
        d_input = np.zeros_like(share, shape=shapes[0], order="C")
        for _, _, outputs, pixels in kernel.walk():
            np.add(d_input[pixels], share[outputs], out=d_input[pixels])
        return d_input.astype(d_out.dtype, copy=False)

    def flops(self, out: Array, kernel_size: Pair) -> int:
        return (prod(_pair("kernel_size", kernel_size, 1)) + 2) * out.size


def _pooling(shape: tuple[int, ...], size: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> _Kernel:
    kernel = _Kernel.over(shape, size, size if stride is None else stride, padding, dilation, ceil)
    if any(2 * axis.padding > axis.kernel for axis in kernel):
        raise ValueError(f"`padding` (={padding}) must be at most half of `kernel_size` (={size})")
    return kernel


def _divide_by_counts(x: Array, kernel: _Kernel, padding: bool) -> None:
    np.divide(x, kernel.vertical.counts(padding, x.dtype)[:, None], out=x)
    np.divide(x, kernel.horizontal.counts(padding, x.dtype), out=x)


# -- upsampling


class Upsample(Op):
    """Images enlarged by whole numbers: each pixel repeated ("nearest"), or interpolated between ("bilinear").

    Input (N, C, H, W), output (N, C, s_h H, s_w W) of its dtype, for ``scale_factor`` s, a number or a pair. Bilinear
    as PyTorch's align_corners=False: output pixel y lies at (y + 1/2) / s - 1/2 of the input, whose outermost pixels
    go on beyond its edge. Keeps nothing: it is linear.
    """

    name = "upsample"
    source = "out = (1 - w) x_i + w x_i+1 along height, then width"
    saves = {"input": ()}

    def forward(self, input: Array, scale_factor: Pair, mode: Literal["nearest", "bilinear"] = "nearest") -> Array:
        vertical, horizontal = self._scales(input.shape, scale_factor, mode)
        n, channels, height, width = input.shape
        if mode == "nearest":
            out = np.empty_like(input, shape=(n, channels, height, vertical, width, horizontal), order="C")
            np.copyto(out, input[:, :, :, None, :, None])
            return np.reshape(out, (n, channels, height * vertical, width * horizontal))
        tall = np.empty_like(input, shape=(n, channels, height * vertical, width), order="C")
        _stretch(input, vertical, tall)
        out = np.empty_like(input, shape=(n, channels, height * vertical, width * horizontal), order="C")
        _stretch(np.swapaxes(tall, 2, 3), horizontal, np.swapaxes(out, 2, 3))
        return out

    def _scales(self, shape: tuple[int, ...], scale: Pair, mode: str) -> tuple[int, int]:
        if len(shape) != 4:
            raise ValueError(f"the input must have shape (N, C, height, width), it has {shape}")
        if mode not in ("nearest", "bilinear"):
            raise ValueError(f"`mode` (={mode!r}) must be 'nearest' or 'bilinear'")
        return _pair("scale_factor", scale, 1)

    def vjp(self, d_out: Array, shapes: Any, scale_factor: Pair, mode: str) -> Array:
        vertical, horizontal = self._scales(shapes[0], scale_factor, mode)
        n, channels, height, width = shapes[0]
        if mode == "nearest":
            blocks = np.reshape(d_out, (n, channels, height, vertical, width, horizontal))
            return np.sum(blocks, axis=(3, 5), dtype=wide(d_out.dtype)).astype(d_out.dtype, copy=False)
        dtype = wide(d_out.dtype)
        tall = np.zeros_like(d_out, shape=(n, channels, height * vertical, width), dtype=dtype, order="C")
        _shrink(np.swapaxes(d_out, 2, 3), horizontal, np.swapaxes(tall, 2, 3))
        d_input = np.zeros_like(d_out, shape=shapes[0], dtype=dtype, order="C")
        _shrink(tall, vertical, d_input)
        return d_input.astype(d_out.dtype, copy=False)

    def flops(self, out: Array, scale_factor: Pair, mode: str) -> int:
        tall = out.size // _pair("scale_factor", scale_factor, 1)[1]
        return 0 if mode == "nearest" else 3 * (tall + out.size)


def _neighbours(scale: int, n: int) -> Iterator[tuple[int, float, list[tuple[slice, slice]]]]:
    """For each of the ``scale`` outputs of a pixel: its number, and the weight and place of the neighbour it leans to.

    A place is a pair (outputs' pixels, their neighbours); at the edge a pixel is its own neighbour.
    """
    for phase in range(scale):
        shift = (phase + 0.5) / scale - 0.5
        if shift < 0:
            yield phase, -shift, [(slice(1, n), slice(0, n - 1)), (slice(0, 1), slice(0, 1))]
        else:
            yield phase, shift, [(slice(0, n - 1), slice(1, n)), (slice(n - 1, n), slice(n - 1, n))]


def _stretch(x: Array, scale: int, out: Array) -> None:
    """Interpolate (..., n, m) along n, into ``out`` (..., scale n, m)."""
    n = x.shape[-2]
    part = np.empty_like(x)
    for phase, weight, places in _neighbours(scale, n):
        target = out[..., phase::scale, :]
        np.multiply(x, 1 - weight, out=target)
        np.multiply(x, weight, out=part)
        for pixels, neighbours in places:
            np.add(target[..., pixels, :], part[..., neighbours, :], out=target[..., pixels, :])


def _shrink(d_out: Array, scale: int, d_x: Array) -> None:
    """Add to ``d_x`` the gradient that _stretch gives for ``d_out``."""
    part = np.empty_like(d_x)
    for phase, weight, places in _neighbours(scale, d_x.shape[-2]):
        source = d_out[..., phase::scale, :]
        np.add(d_x, np.multiply(source, 1 - weight, out=part), out=d_x)
        np.multiply(source, weight, out=part)
        for pixels, neighbours in places:
            target = d_x[..., neighbours, :]
            np.add(target, part[..., pixels, :], out=target)


conv2d = Conv2d()
max_pool2d = MaxPool2d()
avg_pool2d = AvgPool2d()
upsample = Upsample()
