"""What holds for every op, on calls drawn at random (tests/ops/cases.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401 - makes np.dtype know bfloat16
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memback as mb
from memback import ops
from memback.op import REGISTRY, Op
from memback.tape import Tensor
from tests.ops.cases import CASES, SEED, Call

OPS = sorted(name for name, op in REGISTRY.items() if type(op).__module__.startswith("memback."))
STEP = 1e-5


def of_every_op(examples: int) -> Callable[[Callable[..., None]], Any]:
    """Run a test of (op, call) on calls of every op."""

    def wrap(test: Callable[[Op, Call], None]) -> Any:
        @pytest.mark.parametrize("name", OPS)
        @settings(max_examples=examples)
        @given(data=st.data())
        def run(name: str, data: Any) -> None:
            test(REGISTRY[name], data.draw(CASES[name].calls))

        run.__name__, run.__qualname__ = test.__name__, test.__qualname__
        return run

    return wrap


# -- calls


def forward(op: Op, call: Call) -> list[Any]:
    """Outputs of a call on arrays."""
    mb.manual_seed(SEED)
    call = call.copy()
    out = op(*call.args, **call.kwargs)
    return list(out) if op.multiple else [out]


def backward(op: Op, call: Call, d_out: list[Any]) -> list[Any]:
    """Gradients of a call on arrays, one an input."""
    mb.manual_seed(SEED)
    call = call.copy()
    grads = op.backward(tuple(d_out) if op.multiple else d_out[0], *call.args, **call.kwargs)
    return [grads] if op.single else list(grads)


def inputs(op: Op, call: Call) -> list[Any]:
    return op.input_arrays(op.bind(*call))


def differentiable(op: Op, call: Call) -> list[int]:
    """Places among the inputs of arrays that have a derivative."""
    names = op.inputs * len(inputs(op, call)) if op.variadic is not None else op.inputs
    return [i for i, x in enumerate(inputs(op, call)) if isinstance(x, np.ndarray) and names[i] in op.saves]


def with_inputs(op: Op, call: Call, change: Callable[[int, Any], Any]) -> Call:
    """The call with each array among its inputs replaced by ``change(place, array)``."""
    values = op.bind(*call)
    places = {i: k for k, (_, i) in enumerate(op.array_slots)}
    for i, value in enumerate(values):
        if i == op.variadic:
            values[i] = [change(k, x) for k, x in enumerate(value)]
        elif i in places and isinstance(value, np.ndarray):
            values[i] = change(places[i], value)
    return Call(tuple(values), {})


def random_like(arrays: list[Any], seed: int = 1) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=a.shape)).astype(a.dtype) for a in arrays]


def kept_by(op: Op, call: Call) -> tuple[list[Any], tuple[Any, ...]]:
    """Outputs of a call, and the arguments of ``vjp`` where all that has a derivative needs one."""
    mb.manual_seed(SEED)
    values = op.bind(*call)
    needs = sum(1 << i for i in differentiable(op, call))
    out, residuals = op.run(values, keep=True)
    kept = op.arguments(op.saving(needs, len(op.input_arrays(values))), values, out, residuals)
    return list(out) if op.multiple else [out], kept


def taped(op: Op, call: Call, wanted: set[int]) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Outputs of a call on Tensors of which some require gradients, and these."""
    mb.manual_seed(SEED)
    tensors: dict[int, Tensor] = {}

    def wrap(i: int, x: Any) -> Tensor:
        tensor = Tensor(x, requires_grad=i in wanted)
        if i in wanted:
            tensors[i] = tensor
        return tensor

    call = with_inputs(op, call.copy(), wrap)
    out = op(*call.args)
    return list(out) if op.multiple else [out], tensors


def pull_back(outs: list[Tensor], d_outs: list[Any]) -> None:
    if len(outs) == 1:
        outs[0].backward(d_outs[0])
        return
    total = ops.sum(outs[0] * d_outs[0])
    for out, d_out in zip(outs[1:], d_outs[1:], strict=True):
        total = total + ops.sum(out * d_out)
    total.backward()


# -- gradients


def test_every_op_has_a_case_and_every_case_an_op():
    assert sorted(CASES) == OPS


@of_every_op(examples=12)
def test_gradients_are_what_differences_say(op, call):
    outs = forward(op, call)
    d_outs = random_like(outs)
    grads = backward(op, call, d_outs)
    places = differentiable(op, call)
    assert [i for i, g in enumerate(grads) if g is not None and isinstance(inputs(op, call)[i], np.ndarray)] == places
    for i in places:
        x = inputs(op, call)[i]
        assert grads[i].shape == x.shape
        direction = random_like([x], seed=2)[0]
        expected = sum(np.sum(s * d) for s, d in zip(_slope(op, call, i, direction), d_outs, strict=True))
        np.testing.assert_allclose(np.sum(grads[i] * direction), expected, rtol=1e-6, atol=1e-7)


def _slope(op: Op, call: Call, place: int, direction: Any) -> list[Any]:
    """d(outputs) along a direction of one input."""
    ahead, behind = (
        forward(op, with_inputs(op, call, lambda i, x, step=step: x + step * direction if i == place else x))
        for step in (STEP, -STEP)
    )
    return [(a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True)]


@of_every_op(examples=3)
def test_a_jacobian_times_a_direction_is_the_slope_in_that_direction(op, call):
    if op.multiple:
        with pytest.raises(mb.MembackError, match="several outputs"):
            op.jacobian(*call.args, **call.kwargs)
        return
    mb.manual_seed(SEED)
    copy = call.copy()
    jacobians = op.jacobian(*copy.args, **copy.kwargs)
    jacobians = [jacobians] if op.single else list(jacobians)
    out = forward(op, call)[0]
    for i in differentiable(op, call):
        x = inputs(op, call)[i]
        assert jacobians[i].shape == out.shape + x.shape
        direction = random_like([x], seed=2)[0]
        expected = _slope(op, call, i, direction)[0]
        np.testing.assert_allclose(np.tensordot(jacobians[i], direction, x.ndim), expected, rtol=1e-6, atol=1e-7)
