"""Every op against PyTorch: values and gradients of the same calls, and what each decides where the op has a kink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memback as mb
from memback import ops
from memback.engine.op import REGISTRY, Op
from memback.engine.tensor import Tensor
from tests.ops.cases import CASES, Call
from tests.ops.test_every_op import OPS, differentiable, pull_back, random_like, taped, with_inputs

pytestmark = pytest.mark.torch

TOLERANCES = {"float64": 1e-10, "float32": 2e-4, "float16": 0.02, "bfloat16": 0.1}
"""Of the largest number of an array, or of 1 where that is more; of the number itself for float64 and float32."""

DTYPES = {name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in TOLERANCES}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OPS)
@settings(max_examples=15)
@given(data=st.data())
def test_values_and_gradients_are_those_of_pytorch(torch, name, dtype, data):
    _compare(torch, REGISTRY[name], data.draw(CASES[name].calls), dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", OPS)
@settings(max_examples=5)
@given(data=st.data())
def test_numbers_of_two_bytes_are_those_of_pytorch_as_far_as_they_carry(torch, name, dtype, data):
    _compare(torch, REGISTRY[name], data.draw(CASES[name].calls), dtype)


def _compare(torch: Any, op: Op, call: Call, dtype: str) -> None:
    """Outputs and gradients of a call, with dL/d(outputs) drawn at random."""
    call = call.cast(DTYPES[dtype])
    places = differentiable(op, call)
    outs, tensors = taped(op, call, set(places))
    d_outs = random_like([out.data for out in outs])

    leaves: dict[int, Any] = {}

    def leaf(place: int, x: Any) -> Any:
        leaves[place] = to_torch(torch, x).requires_grad_(place in places)
        return leaves[place]

    theirs = equivalent(torch, op, call, leaf)
    for out, expected in zip(outs, theirs, strict=True):
        assert (out.shape, str(out.dtype)) == (tuple(expected.shape), str(expected.dtype).removeprefix("torch."))
        _close(out.data, expected, dtype)
    torch.autograd.backward(theirs, [to_torch(torch, d) for d in d_outs])
    pull_back(outs, d_outs)
    for place, tensor in tensors.items():
        _close(tensor.grad, leaves[place].grad, dtype)


def to_torch(torch: Any, x: Any) -> Any:
    """The same numbers in the same layout."""
    if x.dtype.name == "bfloat16":
        return torch.tensor(x.astype(np.float32)).bfloat16()
    return torch.tensor(x)


def equivalent(torch: Any, op: Op, call: Call, leaf: Any) -> list[Any]:
    """PyTorch's outputs of a call, each of the op's inputs being replaced by ``leaf(place, input)``."""
    values = with_inputs(op, call.copy(), leaf).map(lambda x: to_torch(torch, x))
    named = dict(zip(op.parameters, values.args, strict=True))
    positional = [named.pop(parameter) for parameter in op.parameters if parameter not in call.kwargs]
    out = CASES[op.name].torch(torch, *positional[: len(call.args)], **named)
    return list(out) if isinstance(out, (tuple, list)) else [out]


def _close(found: Any, expected: Any, dtype: str) -> None:
    tolerance, expected = TOLERANCES[dtype], expected.detach().double().numpy()
    found = found.astype(np.float64)
    if dtype in ("float16", "bfloat16"):
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.max(np.abs(expected), initial=1))
    else:
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in OPS if name != "tiled_attention"])  # PyTorch's picks plain for some
@settings(max_examples=15)
@given(data=st.data())
def test_an_op_keeps_no_more_than_pytorchs(torch, name, data):
    """Inputs are values of the forward pass here, so that keeping them counts; each is the output of an addition."""
    from tests.models.torch_twins import kept_bytes

    op, call = REGISTRY[name], data.draw(CASES[name].calls).cast(np.dtype(np.float32))
    places = differentiable(op, call)
    zero = np.float32(0)
    with mb.Tape() as tape:
        ours = with_inputs(op, call.copy(), lambda i, x: Tensor(x, i in places) + zero if i in places else Tensor(x))
        out = op(*ours.args)
        saved = tape.saved_bytes
    del out
    existing: dict[str, Any] = {}

    def leaf(place: int, x: Any) -> Any:
        existing[str(place)] = tensor = to_torch(torch, x).requires_grad_(place in places)
        return tensor + 0.0 if place in places else tensor

    assert saved <= kept_bytes(lambda: equivalent(torch, op, call, leaf), existing, [])


# -- where numbers are extreme, and where derivatives jump


EXTREME = [0.0, -0.0, 1e-8, -1e-3, 0.7, -5.0, 20.0, -30.0, 100.0, -400.0, 1e4, -1e4]

OF_ONE = {
    "gelu": lambda torch: torch.nn.functional.gelu,
    "sigmoid": lambda torch: torch.sigmoid,
    "silu": lambda torch: torch.nn.functional.silu,
    "softplus": lambda torch: torch.nn.functional.softplus,
    "tanh": lambda torch: torch.tanh,
    "softmax": lambda torch: lambda x: torch.softmax(x, -1),
    "log_softmax": lambda torch: lambda x: torch.log_softmax(x, -1),
    "leaky_relu": lambda torch: torch.nn.functional.leaky_relu,
    "relu": lambda torch: torch.relu,
    "relu_bits": lambda torch: torch.relu,
    "absolute": lambda torch: torch.abs,
}


def _same_gradients(torch: Any, ours: Callable[..., Any], theirs: Callable[..., Any], *arrays: Any) -> None:
    """Values, and gradients of their weighted sum."""
    tensors = [Tensor(np.array(a), requires_grad=True) for a in arrays]
    leaves = [torch.tensor(np.array(a), requires_grad=True) for a in arrays]
    out, expected = ours(*tensors), theirs(*leaves)
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(out.data, expected.detach().numpy(), **tolerance)
    weights = np.linspace(0.5, 1.5, out.size, dtype=out.dtype).reshape(out.shape)
    out.backward(weights)
    expected.backward(torch.tensor(weights))
    for tensor, leaf in zip(tensors, leaves, strict=True):
        np.testing.assert_allclose(tensor.grad, leaf.grad.numpy(), **tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", OF_ONE)
def test_extreme_numbers_neither_overflow_nor_warn(torch, name, dtype):
    _same_gradients(torch, REGISTRY[name], OF_ONE[name](torch), np.array(EXTREME, dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_losses_of_extreme_scores_neither_overflow_nor_warn(torch, dtype):
    scores, targets = np.array(EXTREME, dtype).reshape(4, 3), np.array([0, 2, 1, 0])
    functional = torch.nn.functional
    _same_gradients(
        torch,
        lambda x: ops.cross_entropy(x, targets),
        lambda x: functional.cross_entropy(x, torch.tensor(targets)),
        scores,
    )
    labels = np.array([[0, 1, 0.5]] * 4, dtype)
    _same_gradients(
        torch,
        lambda x: ops.binary_cross_entropy_with_logits(x, labels),
        lambda x: functional.binary_cross_entropy_with_logits(x, torch.tensor(labels)),
        scores,
    )


def test_where_two_are_equal_each_gets_half_of_maximums_gradient(torch):
    _same_gradients(torch, ops.maximum, torch.maximum, [1.0, 2.0, 0.0], [1.0, 3.0, -1.0])


def test_the_first_of_equal_elements_along_a_dimension_gets_maxs_gradient(torch):
    rows = [[2.0, 2.0, 1.0], [0.0, 3.0, 3.0]]
    _same_gradients(torch, lambda x: ops.max(x, 1), lambda x: torch.max(x, 1).values, rows)


def test_the_first_of_equal_pixels_gets_max_pools_gradient(torch):
    image = np.zeros((1, 1, 4, 4))
    image[..., 1:3, 1:3] = 1
    _same_gradients(torch, lambda x: ops.max_pool2d(x, 2), lambda x: torch.nn.functional.max_pool2d(x, 2), image)
    _same_gradients(torch, lambda x: ops.max_pool2d(x, 3, 1), lambda x: torch.nn.functional.max_pool2d(x, 3, 1), image)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 0.0, 2.0])
def test_powers_of_zero_and_of_negative_numbers(torch, exponent):
    numbers = [0.0, 2.0, -3.0]
    _same_gradients(torch, lambda x: x**exponent, lambda x: x**exponent, numbers)
    _same_gradients(
        torch, lambda x: ops.power(x, np.full(3, float(exponent))), lambda x: x ** torch.full((3,), exponent), numbers
    )


def test_derivatives_by_an_exponent_at_zero_and_below(torch):
    _same_gradients(torch, ops.power, torch.pow, [0.0, 0.0, -2.0, 2.0], [0.0, 2.0, 2.0, 0.0])


def test_a_root_has_an_infinite_slope_at_zero(torch):
    with np.errstate(divide="ignore"):
        _same_gradients(torch, ops.sqrt, torch.sqrt, [0.0, 4.0])


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "maximum", "max", "max_pool2d", "softmax", "sum"])
def test_nan_comes_out_where_it_went_in(torch, name):
    x = np.array([[[[1.0, np.nan], [2.0, -1.0]]]])
    theirs = {
        "relu": torch.relu,
        "leaky_relu": torch.nn.functional.leaky_relu,
        "maximum": lambda a: torch.maximum(a, torch.tensor(0.0)),
        "max": torch.max,
        "max_pool2d": lambda a: torch.nn.functional.max_pool2d(a, 2),
        "softmax": lambda a: torch.softmax(a, -1),
        "sum": torch.sum,
    }
    ours = {"maximum": lambda a: ops.maximum(a, 0.0), "max_pool2d": lambda a: ops.max_pool2d(a, 2)}
    found = ours.get(name, REGISTRY[name])(x)
    np.testing.assert_array_equal(np.isnan(found), torch.isnan(theirs[name](torch.tensor(x))).numpy())


# -- options of losses


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 5, 3), (2, 5, 3, 2)])
@pytest.mark.parametrize("ignored", [-100, 2, None])
def test_cross_entropy_with_every_option(torch, reduction, shape, ignored):
    rng = np.random.default_rng(0)
    targets = np.asarray(rng.integers(0, 5, shape[:1] + shape[2:] if len(shape) > 1 else ()))
    if targets.ndim and ignored is not None:
        targets.flat[::2] = ignored
    options = {"reduction": reduction} | ({} if ignored is None else {"ignore_index": ignored})
    _same_gradients(
        torch,
        lambda x: ops.cross_entropy(x, targets, **options),
        lambda x: torch.nn.functional.cross_entropy(x, torch.tensor(targets), **options),
        rng.normal(size=shape),
    )
