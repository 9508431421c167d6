"""Convolution against its definition; what convolution and pooling keep and choose."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 - makes np.dtype know bfloat16
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from memback.dry.array import ShapeArray
from memback.dry.memory import dry_memory
from memback.engine.op import OpError
from memback.ops.convolution import avg_pool2d, conv2d, max_pool2d, upsample

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def convolve_by_definition(x, weight, bias, stride, padding, dilation, groups):
    (_, _, height, width), (outputs, inputs, kh, kw) = x.shape, weight.shape
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    tall = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    broad = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    out = np.empty((len(x), outputs, tall, broad))
    for n, o, row, column in np.ndindex(*out.shape):
        first = o // (outputs // groups) * inputs
        window = padded[n, first : first + inputs, row * sh :, column * sw :][:, : dh * (kh - 1) + 1 : dh]
        out[n, o, row, column] = bias[o] + (window[:, :, : dw * (kw - 1) + 1 : dw] * weight[o]).sum()
    return out


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=pairs,
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=pairs,
    groups=st.integers(1, 3),
    each=pairs,
)
def test_a_convolution_is_the_sum_in_its_definition(size, kernel, stride, padding, dilation, groups, each):
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, k, p, d in zip(size, kernel, padding, dilation, strict=True)))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, groups * each[0], *size))
    weight = rng.normal(size=(groups * each[1], each[0], *kernel))
    bias = rng.normal(size=groups * each[1])
    attributes = (stride, padding, dilation, groups)
    expected = convolve_by_definition(x, weight, bias, *attributes)
    np.testing.assert_allclose(conv2d(x, weight, bias, *attributes), expected, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3])
def test_to_differentiate_by_the_one_factor_the_other_is_kept(kernel, rng):
    assert conv2d.saving(0b001, 3).names == ("weight",)
    assert conv2d.saving(0b010, 3).names == ("input",)
    assert conv2d.saving(0b100, 3).names == ()


def test_more_than_one_piece_of_work_gives_what_one_gives(monkeypatch, rng):
    x, weight = rng.normal(size=(5, 4, 6, 7)), rng.normal(size=(6, 2, 3, 2))
    attributes = (None, 2, 1, 1, 2)
    out = conv2d(x, weight, *attributes)
    grads = conv2d.backward(out, x, weight, *attributes)
    monkeypatch.setattr("memback.ops.convolution.PIECE", 1)
    np.testing.assert_allclose(conv2d(x, weight, *attributes), out, rtol=1e-12)
    for one, other in zip(conv2d.backward(out, x, weight, *attributes)[:2], grads[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_the_workspace_of_a_large_batch_is_bounded():
    memory = dry_memory()
    x, weight = ShapeArray.argument((1024, 16, 32, 32)), ShapeArray.argument((16, 16, 3, 3))
    before = memory.live
    memory.reset_peak()
    out = conv2d.forward(x, weight, padding=1)
    assert memory.peak - before < out.nbytes + 10 * 2**20


def test_a_pointwise_convolution_takes_no_workspace():
    memory = dry_memory()
    x, weight = ShapeArray.argument((64, 16, 32, 32)), ShapeArray.argument((16, 16, 1, 1))
    before = memory.live
    memory.reset_peak()
    out = conv2d.forward(x, weight)
    assert memory.peak - before == out.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "call",
    [
        lambda x: conv2d(x, x[:, :, :2, :2]),
        lambda x: conv2d(x, x[:, :, :1, :1]),
        lambda x: max_pool2d(x, 2),
        lambda x: avg_pool2d(x, 2),
        lambda x: upsample(x, 2),
        lambda x: upsample(x, 2, "bilinear"),
    ],
)
def test_the_dtype_stays(call, dtype, rng):
    x = rng.normal(size=(2, 2, 4, 4)).astype(np.dtype(dtype))
    assert call(x).dtype == x.dtype


def test_sums_of_float16_are_taken_in_float32():
    x, weight = np.full((1, 4096, 1, 1), 1, "float16"), np.full((1, 4096, 1, 1), 1, "float16")
    assert conv2d(x, weight).item() == 4096  # in float16, 2048 + 1 = 2048
    assert avg_pool2d(np.full((1, 1, 64, 64), 1, "float16"), 64).item() == 1


# -- pooling


@pytest.mark.parametrize(("kernel", "dtype"), [(2, "uint8"), (16, "uint8"), ((16, 17), "uint16")])
def test_max_pooling_keeps_where_the_largest_was_in_the_smallest_type(kernel, dtype, rng):
    out, index = max_pool2d.forward(rng.normal(size=(1, 2, 40, 40)), kernel)
    assert index.dtype == dtype
    assert index.shape == out.shape
    assert max_pool2d.saving(1, 1).names == ("index",)


def test_the_first_of_equal_pixels_is_the_largest():
    grad = max_pool2d.backward(np.ones((1, 1, 1, 1)), np.ones((1, 1, 2, 2)), 2)
    np.testing.assert_array_equal(grad[0, 0], [[1, 0], [0, 0]])


def test_nan_is_the_largest_of_all():
    x = np.ones((1, 1, 2, 2))
    x[0, 0, 0, 1] = np.nan
    assert np.isnan(max_pool2d(x, 2)).all()


def test_a_gradient_stays_with_the_largest_even_if_it_is_not_finite():
    x = np.arange(4.0).reshape(1, 1, 2, 2)
    grad = max_pool2d.backward(np.full((1, 1, 1, 1), np.inf), x, 2)
    np.testing.assert_array_equal(grad[0, 0], [[0, 0], [0, np.inf]])


def test_padding_is_never_the_largest():
    assert (max_pool2d(np.full((1, 1, 3, 3), -5.0), 3, 1, 1) == -5).all()


def test_an_average_counts_the_padding_or_not():
    x = np.ones((1, 1, 2, 2))
    assert avg_pool2d(x, 2, 2, 1)[0, 0, 0, 0] == 0.25
    assert avg_pool2d(x, 2, 2, 1, count_include_pad=False)[0, 0, 0, 0] == 1


def test_rounding_up_adds_a_last_window_unless_it_sees_padding_alone():
    x = np.ones((1, 1, 5, 5))
    assert avg_pool2d(x, 2).shape == (1, 1, 2, 2)
    assert avg_pool2d(x, 2, ceil_mode=True).shape == (1, 1, 3, 3)
    assert (avg_pool2d(x, 2, ceil_mode=True) == 1).all()
    assert max_pool2d(np.ones((1, 1, 4, 4)), 2, 3, 1, ceil_mode=True).shape == (1, 1, 2, 2)


# -- upsampling


def test_nearest_repeats_pixels():
    x = np.arange(4.0).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(upsample(x, (1, 2))[0, 0], [[0, 0, 1, 1], [2, 2, 3, 3]])


@given(scale=st.integers(1, 5), n=st.integers(1, 5))
def test_bilinear_continues_a_ramp_up_to_the_outermost_pixels(scale, n):
    ramp = np.arange(float(n))
    places = np.clip((np.arange(n * scale) + 0.5) / scale - 0.5, 0, n - 1)
    out = upsample(np.broadcast_to(ramp[:, None], (1, 1, n, 2)), (scale, 3), "bilinear")
    np.testing.assert_allclose(out[0, 0], np.broadcast_to(places[:, None], (n * scale, 6)), atol=1e-12)


@pytest.mark.parametrize("op", [avg_pool2d, upsample])
def test_what_is_linear_keeps_nothing(op):
    assert op.saving(1, 1).names == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: conv2d(x, np.ones((4, 4, 1, 1)), groups=2), r"`groups` \(=2\) .* needs 8 input channels"),
        (lambda x: conv2d(x, np.ones((4, 4, 7, 1))), r"reaches over 7 pixels, the padded image has 6"),
        (lambda x: conv2d(x[0], np.ones((4, 4, 1, 1))), "must have four dimensions"),
        (lambda x: conv2d(x, np.ones((4, 4, 1, 1)), stride=0), r"`stride` \(=0\) must be one or two integers of at"),
        (lambda x: conv2d(x, np.ones((4, 4, 1, 1)), np.ones(3)), r"`bias` has shape \(3,\), it must have \(4,\)"),
        (lambda x: max_pool2d(x, 2, padding=2), r"`padding` \(=2\) must be at most half of `kernel_size` \(=2\)"),
        (lambda x: upsample(x, 2, "cubic"), r"`mode` \(='cubic'\) must be 'nearest' or 'bilinear'"),
    ],
)
def test_a_wrong_call_names_value_and_remedy(call, message):
    with pytest.raises(OpError, match=message):
        call(np.zeros((1, 4, 6, 6)))


# -- pooling of small maps, where the windows of an offset may leave one row or column

SIDES = [(h, w) for h in range(1, 6) for w in range(1, 6)]
WINDOWS = [(k, s, p, d) for k in range(1, 6) for s in range(1, 4) for p in range(k // 2 + 1) for d in (1, 2)]


def windows_of(x, kernel, stride, padding, dilation, outside):
    """The pixels that each output sees, (N, C, rows, columns, kernel, kernel); ``outside`` is what padding holds."""
    reach = dilation * (kernel - 1) + 1
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=outside)
    if min(padded.shape[2:]) < reach:
        return None
    seen = np.lib.stride_tricks.sliding_window_view(padded, (reach, reach), axis=(2, 3))
    return seen[:, :, ::stride, ::stride, ::dilation, ::dilation]


@pytest.mark.parametrize("layout", ["rows", "channels last"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "k{} s{} p{} d{}".format(*window))
def test_max_pool_of_every_small_map_is_the_maximum_in_its_definition(window, dtype, layout, rng):
    """Numbers and gradients; every third map has a NaN, which is largest."""
    for side in SIDES:
        x = rng.normal(size=(12, 3, *side)).astype(dtype)
        x[::3, 1, side[0] // 2, side[1] // 2] = np.nan
        windows = windows_of(x, *window, -np.inf)
        if windows is None:
            continue
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if layout == "channels last" else x
        np.testing.assert_array_equal(max_pool2d(x, *window), windows.max((4, 5)))
        d_out = rng.integers(1, 9, windows.shape[:4]).astype(dtype)
        where = windows.reshape(*windows.shape[:4], -1).argmax(-1)
        expected = np.zeros((12, 3, side[0] + 2 * window[2], side[1] + 2 * window[2]), dtype)
        n, c, row, column = np.indices(where.shape)
        rows = row * window[1] + where // window[0] * window[3]
        np.add.at(expected, (n, c, rows, column * window[1] + where % window[0] * window[3]), d_out)
        inner = (..., slice(window[2], window[2] + side[0]), slice(window[2], window[2] + side[1]))
        np.testing.assert_array_equal(max_pool2d.backward(d_out, x, *window), expected[inner])


@pytest.mark.parametrize("window", [w for w in WINDOWS if w[3] == 1], ids=lambda window: "k{} s{} p{}".format(*window))
def test_average_pool_of_every_small_map_is_the_average_in_its_definition(window, rng):
    for side in SIDES:
        x = rng.normal(size=(4, 3, *side))
        windows = windows_of(x, *window, 0)
        if windows is not None:
            np.testing.assert_allclose(avg_pool2d(x, *window[:3]), windows.mean((4, 5)), atol=1e-14)
