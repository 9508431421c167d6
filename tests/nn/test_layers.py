from __future__ import annotations

import tracemalloc

import ml_dtypes  # noqa: F401 - makes np.dtype know bfloat16
import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.dry.array import ShapeArray
from tests.differences import check_gradients

LAYERS = {
    "linear": (lambda d: nn.Linear(3, 4, dtype=d), (2, 3)),
    "linear without bias": (lambda d: nn.Linear(3, 4, bias=False, dtype=d), (2, 5, 3)),
    "conv2d": (lambda d: nn.Conv2d(2, 4, 3, 2, 1, dtype=d), (2, 2, 5, 6)),
    "conv2d in groups": (
        lambda d: nn.Conv2d(4, 4, (1, 2), padding=(0, 1), groups=2, bias=False, dtype=d),
        (1, 4, 3, 3),
    ),
    "layer norm": (lambda d: nn.LayerNorm(5, dtype=d), (3, 5)),
    "layer norm over two dimensions": (lambda d: nn.LayerNorm((2, 3), dtype=d), (3, 2, 3)),
    "rms norm": (lambda d: nn.RMSNorm(5, dtype=d), (3, 5)),
    "group norm": (lambda d: nn.GroupNorm(2, 4, dtype=d), (2, 4, 3, 2)),
    "batch norm of features": (lambda d: nn.BatchNorm1d(3, dtype=d), (5, 3)),
    "batch norm of images": (lambda d: nn.BatchNorm2d(3, dtype=d), (2, 3, 2, 2)),
    "dropout": (lambda d: nn.Dropout(0.4), (4, 5)),
    "dropout in bits": (lambda d: nn.Dropout(0.4, mask="bits"), (4, 5)),
    "dropout from its seed": (lambda d: nn.Dropout(0.4, mask="seed"), (4, 5)),
    "relu": (lambda d: nn.ReLU(), (3, 4)),
    "leaky relu": (lambda d: nn.LeakyReLU(0.1), (3, 4)),
    "gelu": (lambda d: nn.GELU(), (3, 4)),
    "gelu by tanh": (lambda d: nn.GELU("tanh"), (3, 4)),
    "silu": (lambda d: nn.SiLU(), (3, 4)),
    "sigmoid": (lambda d: nn.Sigmoid(), (3, 4)),
    "tanh": (lambda d: nn.Tanh(), (3, 4)),
    "softplus": (lambda d: nn.Softplus(), (3, 4)),
    "softmax": (lambda d: nn.Softmax(), (3, 4)),
    "max pool": (lambda d: nn.MaxPool2d(2), (1, 2, 4, 4)),
    "max pool with padding": (lambda d: nn.MaxPool2d(3, 2, 1), (1, 2, 5, 5)),
    "average pool": (lambda d: nn.AvgPool2d(2), (1, 2, 4, 4)),
    "upsample": (lambda d: nn.Upsample(2), (1, 2, 2, 3)),
    "upsample bilinear": (lambda d: nn.Upsample(2, "bilinear"), (1, 2, 2, 3)),
    "flatten": (lambda d: nn.Flatten(), (2, 3, 4)),
    "lstm": (lambda d: nn.LSTM(3, 2, 2, dtype=d), (2, 3, 3)),
    "attention": (lambda d: nn.MultiHeadAttention(8, 2, dtype=d), (2, 3, 8)),
    "causal attention with dropout": (
        lambda d: nn.MultiHeadAttention(8, 4, causal=True, dropout=0.3, dtype=d),
        (2, 3, 8),
    ),
    "fused attention, grouped queries": (
        lambda d: nn.MultiHeadAttention(8, 4, 2, causal=True, attention="fused", rotary=True, dtype=d),
        (2, 3, 8),
    ),
    "tiled attention": (lambda d: nn.MultiHeadAttention(8, 2, causal=True, attention="tiled", dtype=d), (2, 3, 8)),
}


def make(name, dtype="float64"):
    mb.manual_seed(1)
    constructor, shape = LAYERS[name]
    return constructor(dtype), shape


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_agree_with_finite_differences(name):
    layer, shape = make(name)
    random = np.random.default_rng(2)
    x = mb.Tensor(random.standard_normal(shape), requires_grad=True)
    with mb.no_grad():
        direction = random.standard_normal(layer(x).shape)
    check_gradients(lambda: ops.sum(ops.multiply(layer(x), direction)), {"input": x, **dict(layer.named_parameters())})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_dtype_is_carried_through(name, dtype):
    layer, shape = make(name, dtype)
    assert all(p.dtype.name == dtype for p in layer.parameters())
    assert all(array.dtype.name == dtype for _, array in layer.named_buffers())
    x = mb.Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.dtype(dtype)), requires_grad=True)
    out = layer(x)
    assert out.dtype.name == dtype
    ops.sum(out).backward()
    assert x.grad.dtype.name == dtype
    assert all(p.grad.dtype.name == dtype for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_a_dry_layer_gives_the_shape_and_dtype_of_the_real_one(name):
    layer, shape = make(name, "float32")
    real = layer(mb.Tensor(np.zeros(shape, np.float32)))
    with mb.dry_run():
        dry_layer, _ = make(name, "float32")
        dry = dry_layer(mb.Tensor(ShapeArray(shape, "float32")))
    assert isinstance(dry.data, ShapeArray)
    assert (dry.shape, dry.dtype) == (real.shape, real.dtype)
    assert [(n, p.shape, p.dtype) for n, p in dry_layer.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in layer.named_parameters()
    ]


def test_a_dry_model_allocates_no_array():
    from memback.models import GPT

    def arrays():
        traces = tracemalloc.take_snapshot().traces
        return sum(trace.size for trace in traces if trace.domain == np.lib.tracemalloc_domain)

    tracemalloc.start()
    try:
        before = arrays()
        with mb.dry_run():
            model = GPT(layers=2, width=1024, heads=8, vocabulary=50_000, context=1024)
        after = arrays()
    finally:
        tracemalloc.stop()
    assert sum(p.nbytes for p in model.parameters()) > 300e6
    assert after - before < 1024


def test_a_dry_model_takes_as_many_draws_of_the_random_stream_as_a_real_one():
    from memback.engine.state import current

    def draws():
        mb.manual_seed(0)
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Conv2d(1, 1, 1))
        return current().draws

    real = draws()
    with mb.dry_run():
        assert draws() == real


def test_linear_is_h_w_plus_b_with_the_weight_of_the_notes():
    layer = nn.Linear(2, 3)
    h = np.array([[1.0, 2.0]], np.float32)
    assert layer.weight.shape == (2, 3)
    np.testing.assert_allclose(layer(mb.Tensor(h)).data, h @ layer.weight.data + layer.bias.data, rtol=1e-6)


def test_weights_start_within_one_over_the_square_root_of_their_inputs():
    weight = nn.Linear(100, 50).weight.data
    assert np.abs(weight).max() <= 0.1
    assert np.abs(weight).max() > 0.09


def test_embedding_takes_rows():
    layer = nn.Embedding(5, 2)
    rows = np.array([[0, 4], [4, 4]])
    np.testing.assert_array_equal(layer(rows).data, layer.weight.data[rows])
    ops.sum(layer(rows)).backward()
    np.testing.assert_array_equal(layer.weight.grad[:, 0], [1, 0, 0, 0, 3])


@pytest.mark.parametrize(
    ("make_layer", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 1, groups=2), r"`in_channels` \(=3\)"),
        (lambda: nn.GroupNorm(3, 4), r"`num_channels` \(=4\)"),
        (lambda: nn.MultiHeadAttention(8, 3), r"`width` \(=8\) must be divisible by `heads` \(=3\)"),
        (lambda: nn.MultiHeadAttention(8, 4, 3), r"`heads` \(=4\) must be divisible by `kv_heads` \(=3\)"),
        (lambda: nn.MultiHeadAttention(8, 2, attention="magic"), "'magic'"),
        (lambda: nn.MultiHeadAttention(8, 2, attention="tiled", dropout=0.1), "tiled attention has no dropout"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(make_layer, message):
    with pytest.raises(ValueError, match=message):
        make_layer()


def test_an_input_of_the_wrong_shape_names_the_layer_and_both_shapes():
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(mb.OpError, match=r"linear \(layer '0'.*float32\[2, 5\].*float32\[3, 4\]"):
        model(mb.Tensor(np.ones((2, 5), np.float32)))
