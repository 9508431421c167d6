"""Working in pieces: the first stands for all where there is no memory, so the prediction equals the measurement."""

from __future__ import annotations

import gc
import tracemalloc

import ml_dtypes  # noqa: F401 - makes np.dtype know bfloat16
import numpy as np
import pytest

from memback.dry.array import ShapeArray, argument_like
from memback.dry.memory import dry_memory
from memback.ops.activations import gelu
from memback.ops.attention import scaled_dot_product_attention, tiled_attention
from memback.ops.convolution import avg_pool2d, conv2d, max_pool2d, upsample
from memback.ops.elementwise import add
from memback.ops.indexing import embedding, getitem
from memback.ops.linear_algebra import linear
from memback.ops.loss import cross_entropy, mse
from memback.ops.normalisation import batch_norm, group_norm, layer_norm, rms_norm
from memback.ops.random import dropout
from memback.ops.reductions import max as maximum_of
from memback.ops.reductions import mean
from memback.ops.reductions import sum as sum_of
from memback.ops.rotary import rotary
from memback.ops.softmax import attention_softmax, log_softmax, softmax
from memback.ops.workspace import pieces, slices, wide

OBJECTS = 2**15
"""Bytes of Python's own objects, iterators and arrays' headers among them."""

IMAGES, SEQUENCES, WEIGHT = (6, 16, 64, 64), (2, 4, 400, 32), (16, 8, 3, 3)
SHORT = (1, 2, 200, 32)
CALLS = {
    "layer_norm": (layer_norm, (IMAGES, (64, 64), (64, 64), (64, 64)), {}),
    "rms_norm": (rms_norm, (IMAGES, 64, (64,)), {}),
    "group_norm": (group_norm, (IMAGES, 4, (16,), (16,)), {}),
    "batch_norm": (batch_norm, (IMAGES, (16,), (16,), (16,), (16,), True), {}),
    "dropout": (dropout, (IMAGES,), {"mask": "bits"}),
    "conv2d": (conv2d, (IMAGES, WEIGHT, (16,), 1, 1, 1, 2), {}),
    "conv2d of pixels": (conv2d, (IMAGES, (16, 16, 1, 1)), {}),
    "max_pool2d": (max_pool2d, (IMAGES, 3, 2, 1), {}),
    "avg_pool2d": (avg_pool2d, (IMAGES, 2), {}),
    "upsample": (upsample, (IMAGES, 2, "bilinear"), {}),
    "attention": (scaled_dot_product_attention, (SEQUENCES,) * 3, {"dropout_p": 0.1, "is_causal": True}),
    "attention with a key": (scaled_dot_product_attention, (SEQUENCES,) * 3, {"dropout_p": 0.1, "mask": "seed"}),
    "tiled attention": (tiled_attention, (SEQUENCES,) * 3, {"is_causal": True}),
    "masked attention": (scaled_dot_product_attention, (SHORT,) * 3, {"attn_mask": (200, 200)}),
    "masked tiles": (tiled_attention, (SHORT,) * 3, {"attn_mask": (200, 200)}),
    "softmax": (softmax, ((700, 300),), {}),
    "attention softmax": (attention_softmax, ((3, 300, 300), 0.5, True), {}),
    "attention softmax of one head": (attention_softmax, ((700, 300), 0.5, True), {}),
    "gelu": (gelu, (IMAGES, "tanh"), {}),
    "rotary": (rotary, (SEQUENCES,), {}),
    "rotary of a few long sequences": (rotary, ((30_000, 2),), {}),
    "attention softmax of short rows": (attention_softmax, ((20_000, 4), 0.5, True), {}),
    "attention of many heads": (scaled_dot_product_attention, ((1_500, 2, 4),) * 3, {}),
    "tiled attention of many heads": (tiled_attention, ((1_500, 2, 4),) * 3, {}),
    "cross entropy of two classes": (cross_entropy, ((60_000, 2), np.zeros(60_000, np.int64)), {}),
    "cross entropy of pixels": (cross_entropy, ((8, 3, 100, 100), np.zeros((8, 100, 100), np.uint8)), {}),
    "cross entropy of many words": (cross_entropy, ((64, 5000), np.zeros(64, np.int64)), {}),
    "max over one": (maximum_of, ((1, 64, 1280), 0), {}),
    "max over rows": (maximum_of, ((4000, 64), 1), {}),
    "log_softmax": (log_softmax, ((700, 300),), {}),
    "sum over the first": (sum_of, ((4000, 64), 0), {}),
    "mean": (mean, ((4000, 64),), {}),
    "embedding": (embedding, (np.zeros(5000, np.int32), (3000, 16)), {}),
    "embedding of wide rows": (embedding, (np.zeros(500, np.int64), (300, 128)), {}),
    "picked": (getitem, ((3000, 16), np.zeros(5000, np.int32)), {}),
    "added row": (add, ((4000, 64), (64,)), {}),
    "linear": (linear, ((4000, 64), (64, 32), (32,)), {}),
    "mse": (mse, ((4000, 64), (4000, 64)), {}),
}
"""Op, its arguments with shapes in the place of inputs, and its keyword arguments."""


def values_of(op, args, kwargs, make):
    values = op.bind(args, kwargs)
    for _, i in op.array_slots:
        values[i] = make(values[i]) if isinstance(values[i], tuple) else values[i]
    return values


def peaks(op, values, begin, peak):
    """Peak bytes of forward and of backward, above what was there before."""
    inputs = op.input_arrays(values)
    needs = sum(1 << k for k, value in enumerate(inputs) if value is not None and op.inputs[k] in op.saves)
    begin()
    out, residuals = op.run(values, keep=True)
    forward = peak()
    kept = op.arguments(op.saving(needs, len(inputs), values), values, out, residuals)
    del residuals
    d_out = np.ones_like(out)
    del out
    begin()
    op.vjp(d_out, *kept)
    return forward, peak()


def predicted(op, args, kwargs, dtype):
    memory, before = dry_memory(), []

    def begin():
        before.append(memory.live)
        memory.reset_peak()

    values = values_of(op, args, kwargs, lambda shape: ShapeArray.argument(shape, dtype))
    values = [argument_like(value) if isinstance(value, np.ndarray) else value for value in values]
    return peaks(op, values, begin, lambda: memory.peak - before[-1])


def measured(op, args, kwargs, dtype):
    before = []

    def begin():
        gc.collect()
        before.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.reset_peak()

    values = values_of(op, args, kwargs, lambda shape: np.ones(shape, dtype))
    peaks(op, values, lambda: None, lambda: 0)  # what is loaded with the first use is loaded
    tracemalloc.start()
    try:
        return peaks(op, values, begin, lambda: tracemalloc.get_traced_memory()[1] - before[-1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CALLS)
def test_a_dry_run_predicts_the_peak_of_forward_and_backward(name, dtype):
    op, args, kwargs = CALLS[name]
    dtype = np.dtype(dtype)
    for seen, expected in zip(measured(op, args, kwargs, dtype), predicted(op, args, kwargs, dtype), strict=True):
        assert expected <= seen <= expected + OBJECTS


def test_slices_cover_a_range_in_order():
    assert list(slices(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(slices(0, 2)) == []


def test_all_pieces_are_worked_off_but_one_stands_for_all_without_memory():
    assert list(pieces(range(3), np.ones(1))) == [0, 1, 2]
    assert list(pieces(range(3), ShapeArray.argument(1))) == [0]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float16", "float32"), ("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")],
)
def test_sums_are_accumulated_in_float32_at_least(dtype, expected):
    assert wide(np.dtype(dtype)) == np.dtype(expected)
