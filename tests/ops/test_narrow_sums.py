"""Sums of thousands of float16 and bfloat16 numbers: accumulated in a wide type, rounded once.

Added up in bfloat16, equal numbers come to a standstill after 256 of them, in float16 after 2048.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from memback.engine.op import REGISTRY
from tests.ops.cases import Call
from tests.ops.test_against_torch import equivalent, to_torch
from tests.ops.test_every_op import OPS, differentiable, pull_back, taped

N, SIDE = 5001, 71
"""Terms, and pixels along the side of a square that has about as many."""
TOLERANCES = {"float16": 0.004, "bfloat16": 0.02}
"""Of the largest number of an array."""
SENSITIVE = {"log_softmax": 4, "scaled_dot_product_attention": 3, "tiled_attention": 3}
"""How much more is allowed where the gradient is taken by an output that was rounded."""
DTYPES = {"float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

_rng = np.random.default_rng(0)


def _some(*shape: int) -> Any:
    """Positive, so that no sum comes out small by chance."""
    return _rng.uniform(0.5, 1.5, size=shape)


def _call(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs)


def _spike(side: int) -> Any:
    """An image whose largest pixel is the one in the middle."""
    image = np.zeros((1, 1, side, side))
    image[..., side // 2, side // 2] = 1
    return image


_FIRST = np.zeros(N, np.int64)
_KEYS = _rng.normal(size=(N, 4))
_CLASSES = _rng.integers(0, 3, N)

CALLS: dict[str, list[Call]] = {
    "add": [_call(_some(N, 3), _some(3))],
    "subtract": [_call(_some(3), _some(N, 3))],
    "multiply": [_call(_some(N, 3), _some(3)), _call(_some(3, N), _some(3, 1))],
    "divide": [_call(_some(N, 3), _some(3))],
    "power": [_call(_some(N, 3), _some(3)), _call(_some(3) + 1, _some(N, 3))],
    "maximum": [_call(_some(N, 3), _some(3))],
    "where": [_call(_some(N, 3) > 0.7, _some(3), _some(N, 3))],
    "broadcast_to": [_call(_some(3), (N, 3)), _call(_some(3, 1), (3, N))],
    "sum": [_call(x, dim, False) for x, dim in ((_some(N, 3), None), (_some(N, 3), 0), (_some(3, N), 1))],
    "mean": [_call(x, dim, False) for x, dim in ((_some(N, 3), None), (_some(N, 3), 0), (_some(70_000, 1), 0))],
    "var": [_call(_some(N, 3), 0), _call(_some(3, N), 1)],
    "matmul": [_call(_some(2, N), _some(N, 2)), _call(_some(N, 1, 2), _some(2, 2))],
    "linear": [_call(_some(N, 2), _some(2, 3), _some(3)), _call(_some(2, N), _some(N, 3), _some(3))],
    "getitem": [_call(_some(3, 2), _FIRST), _call(_some(3, 2), (slice(None), _FIRST))],
    "embedding": [_call(_FIRST, _some(3, 2)), _call(_FIRST, _some(3, 65))],
    "softmax": [_call(_some(2, N), -1), _call(_some(N, 2), 0)],
    "log_softmax": [_call(_some(2, N), -1), _call(_some(N, 2), 0)],
    "attention_softmax": [_call(_some(2, N), 0.5, False)],
    "mse": [_call(_some(N) + 1, _some(N) - 1)],
    "sqerr": [_call(_some(N) + 1, _some(N) - 1)],
    "binary_cross_entropy_with_logits": [_call(_some(N), _some(N))],
    "cross_entropy": [
        _call(_some(2, N), _CLASSES[:2]),
        _call(_some(N), np.array(3)),
        _call(_some(N, 3), _CLASSES),
        _call(_some(N, 3), _CLASSES, reduction="sum"),
        _call(_some(70_000, 2), np.zeros(70_000, np.int64)),
    ],
    "layer_norm": [_call(_some(2, N), (N,), _some(N), _some(N)), _call(_some(N, 3), (3,), _some(3), _some(3))],
    "rms_norm": [_call(_some(2, N), (N,), _some(N)), _call(_some(N, 3), (3,), _some(3))],
    "group_norm": [_call(_some(2, 2, N), 1, _some(2), _some(2), 1e-5)],
    "batch_norm": [_call(_some(N, 2), None, None, _some(2), _some(2), True)],
    "conv2d": [
        _call(_some(1, 1, SIDE, SIDE), _some(2, 1, 1, 1), _some(2)),
        _call(_some(1, 1, SIDE, SIDE), _some(2, 1, SIDE, SIDE), _some(2)),
    ],
    "avg_pool2d": [_call(_some(1, 1, SIDE, SIDE), SIDE, 1, SIDE // 2)],
    "max_pool2d": [_call(_spike(2 * SIDE - 1), SIDE, 1)],
    "upsample": [_call(_some(1, 1, 1, 1), SIDE, "nearest"), _call(_some(1, 1, 1, 1), SIDE, "bilinear")],
    "scaled_dot_product_attention": [_call(_some(2, 4), _KEYS, _KEYS), _call(_some(N, 4), _KEYS[:2], _KEYS[:2])],
    "tiled_attention": [
        _call(_some(2, 4), _KEYS, _KEYS, False, None, 128, None),
        _call(_some(N, 4), _KEYS[:2], _KEYS[:2], False, None, 128, None),
    ],
}
"""Calls whose outputs or gradients are sums of about N terms."""

WITHOUT_SUMS = {
    *("absolute", "concatenate", "dropout", "exp", "gelu", "leaky_relu", "log", "max", "negative", "permute", "relu"),
    *("relu_bits", "reshape", "rotary", "sigmoid", "silu", "softplus", "split", "sqrt", "stack", "swapaxes", "tanh"),
    "transpose",
}

every_call = pytest.mark.parametrize(
    ("name", "number"), [(name, i) for name, calls in CALLS.items() for i in range(len(calls))]
)


def test_every_op_is_here_or_has_no_sums() -> None:
    assert sorted({*CALLS, *WITHOUT_SUMS}) == OPS
    assert not CALLS.keys() & WITHOUT_SUMS


def d_output(out: Any) -> Any:
    """Positive numbers, the same in every type."""
    eighths = 8 + np.arange(out.size).reshape(out.shape) % 7
    return (eighths / 8).astype(out.dtype)


def results(name: str, call: Call) -> dict[str, Any]:
    """Outputs and gradients."""
    op = REGISTRY[name]
    outs, tensors = taped(op, call, set(differentiable(op, call)))
    pull_back(outs, [d_output(out.data) for out in outs])
    found = {f"output {i}": out.data for i, out in enumerate(outs)}
    return found | {f"gradient {place}": tensor.grad for place, tensor in tensors.items()}


def tolerance(name: str, dtype: str) -> float:
    return TOLERANCES[dtype] * SENSITIVE.get(name, 1)


def apart(found: Any, expected: Any) -> float:
    """The largest difference, over the largest number."""
    return float(np.max(np.abs(found.astype(np.float64) - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("dtype", DTYPES)
@every_call
def test_a_sum_of_thousands_is_what_float64_says(name: str, number: int, dtype: str) -> None:
    call = CALLS[name][number].cast(DTYPES[dtype])
    expected = results(name, call.cast(np.float64))
    for what, found in results(name, call).items():
        assert found.dtype == DTYPES[dtype]
        assert apart(found, expected[what]) <= tolerance(name, dtype), what


@pytest.mark.torch
@pytest.mark.parametrize("dtype", DTYPES)
@every_call
def test_a_sum_of_thousands_is_as_right_as_pytorchs(name: str, number: int, dtype: str) -> None:
    """PyTorch's own gradients of picked rows and of pooling come to a standstill."""
    torch = pytest.importorskip("torch")
    op, call = REGISTRY[name], CALLS[name][number].cast(DTYPES[dtype])
    leaves: dict[int, Any] = {}
    places = differentiable(op, call)

    def leaf(place: int, x: Any) -> Any:
        leaves[place] = to_torch(torch, x).requires_grad_(place in places)
        return leaves[place]

    outs = equivalent(torch, op, call, leaf)
    torch.autograd.backward(
        outs, [torch.tensor(d_output(np.empty(out.shape, np.float32))).to(out.dtype) for out in outs]
    )
    theirs = {f"output {i}": out for i, out in enumerate(outs)}
    theirs |= {f"gradient {place}": leaves[place].grad for place in places}
    right = results(name, call.cast(np.float64))
    for what, found in results(name, call).items():
        error = apart(theirs[what].detach().double().numpy(), right[what])
        assert apart(found, right[what]) <= max(error, tolerance(name, dtype)), what
