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
from memback.engine.arrays import is_array, leaves
from memback.engine.op import REGISTRY, Op
from memback.engine.tensor import Tensor
from tests.ops.cases import CASES, SEED, Call, without_memory

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
    return [i for i, x in enumerate(inputs(op, call)) if is_array(x) and names[i] in op.saves]


def with_inputs(op: Op, call: Call, change: Callable[[int, Any], Any]) -> Call:
    """The call with each array among its inputs replaced by ``change(place, array)``."""
    values = op.bind(*call)
    places = {i: k for k, (_, i) in enumerate(op.array_slots)}
    for i, value in enumerate(values):
        if i == op.variadic:
            values[i] = [change(k, x) for k, x in enumerate(value)]
        elif i in places and is_array(value):
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
    kept = op.arguments(op.saving(needs, len(op.input_arrays(values)), values), values, out, residuals)
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


# -- residuals


@of_every_op(examples=12)
def test_residuals_are_made_exactly_where_the_op_says_so(op, call):
    mb.manual_seed(SEED)
    values = op.bind(*call.copy())
    residuals = op.run(values, keep=True)[1]
    assert any(residual is not None for residual in residuals) == op.has_residuals(values)


# -- gradients


def test_every_op_has_a_case_and_every_case_an_op():
    assert sorted(CASES) == OPS


@of_every_op(examples=12)
def test_gradients_are_what_differences_say(op, call):
    outs = forward(op, call)
    d_outs = random_like(outs)
    grads = backward(op, call, d_outs)
    places = differentiable(op, call)
    assert [i for i, g in enumerate(grads) if g is not None and is_array(inputs(op, call)[i])] == places
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


@of_every_op(examples=4)
def test_a_subset_of_inputs_gets_the_same_gradients_as_all_of_them(op, call):
    places = differentiable(op, call)
    d_outs = random_like(forward(op, call))
    expected = backward(op, call, d_outs)
    for bits in range(1, 1 << len(places)):
        wanted = {place for k, place in enumerate(places) if bits >> k & 1}
        outs, tensors = taped(op, call, wanted)
        pull_back(outs, d_outs)
        for place, tensor in tensors.items():
            np.testing.assert_allclose(tensor.grad, expected[place], rtol=1e-12, atol=1e-14)


def test_an_output_without_use_counts_as_zero():
    x = Tensor(np.arange(6.0), requires_grad=True)
    first, _, last = ops.split(x, 2)
    ops.sum(first + last * 2).backward()
    np.testing.assert_array_equal(x.grad, [1, 1, 0, 0, 2, 2])


# -- closed forms, by the notes' indices


def test_the_jacobian_of_linear_is_equations_39_43_and_46():
    rng = np.random.default_rng(0)
    h, W, b = rng.normal(size=3), rng.normal(size=(3, 4)), rng.normal(size=4)
    by_h, by_W, by_b = ops.linear.jacobian(h, W, b)
    for j in range(4):
        for alpha in range(3):
            assert by_h[j, alpha] == W[alpha, j]
            for beta in range(4):
                assert by_W[j, alpha, beta] == (h[alpha] if j == beta else 0)
        for alpha in range(4):
            assert by_b[j, alpha] == (1 if j == alpha else 0)


def test_the_jacobian_of_relu_is_equation_20_and_0_at_0():
    a = np.array([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(ops.relu.jacobian(a), np.diag([0.0, 0.0, 1.0]))


def test_the_jacobian_of_sqerr_is_the_difference_from_the_target():
    f, y = np.array([1.0, 5.0]), np.array([3.0, 4.0])
    by_f, by_y = ops.sqerr.jacobian(f, y)
    np.testing.assert_array_equal(by_f, [-2.0, 1.0])
    np.testing.assert_array_equal(by_y, [2.0, -1.0])


@pytest.mark.parametrize("name", [name for name in OPS if hasattr(REGISTRY[name], "closed_jacobian")])
@settings(max_examples=5)
@given(data=st.data())
def test_a_closed_jacobian_is_what_backward_gives_row_by_row(name, data):
    op, call = REGISTRY[name], data.draw(CASES[name].calls)
    out = forward(op, call)[0]
    units = np.eye(out.size).reshape(-1, *out.shape)
    rows = zip(*(backward(op, call, [unit]) for unit in units), strict=True)
    closed = op.jacobian(*call.args, **call.kwargs)
    for jacobian, row in zip([closed] if op.single else closed, rows, strict=True):
        if jacobian is None:
            assert row[0] is None
        else:
            np.testing.assert_allclose(jacobian, np.reshape(row, jacobian.shape), rtol=1e-14, atol=0)


# -- dtypes


@of_every_op(examples=3)
def test_float32_in_is_float32_out_and_float32_gradients(op, call):
    _check_dtype(op, call, np.dtype("float32"), tolerance=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", OPS)
@settings(max_examples=3)
@given(data=st.data())
def test_two_bytes_in_are_two_bytes_out(name, dtype, data):
    dtype = np.dtype(dtype)
    _check_dtype(REGISTRY[name], data.draw(CASES[name].calls), dtype, tolerance=0.01 if dtype.kind == "f" else 0.08)


def _check_dtype(op: Op, call: Call, dtype: Any, tolerance: float) -> None:
    """Outputs and gradients of ``dtype``, no further than ``tolerance`` from those of the same values in float64."""
    call = call.cast(dtype)
    wide = call.cast(np.float64)
    outs, tensors = taped(op, call, set(differentiable(op, call)))
    expected = forward(op, wide)
    d_outs = random_like([out.data for out in outs])
    for out, value in zip(outs, expected, strict=True):
        assert out.dtype == dtype
        assert out.shape == value.shape
        _close(out.data, value, tolerance)
    pull_back(outs, d_outs)
    wide_grads = backward(op, wide, [d.astype(np.float64) for d in d_outs])
    for place, tensor in tensors.items():
        assert tensor.grad.dtype == dtype
        _close(tensor.grad, wide_grads[place], tolerance)


def _close(found: Any, expected: Any, tolerance: float) -> None:
    scale = max(1.0, np.max(np.abs(expected), initial=0))
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=tolerance * scale)


# -- memory


@of_every_op(examples=4)
def test_arrays_without_memory_foresee_shapes_dtypes_and_saved_bytes(op, call):
    for dtype in (np.float64, np.float32):
        real = call.cast(dtype)
        foreseen = with_inputs(op, real, lambda _, x: without_memory(x))
        assert _outcome(op, foreseen) == _outcome(op, real)


def _outcome(op: Op, call: Call) -> list[Any]:
    """Saved bytes, and shapes and dtypes of outputs and gradients."""
    with mb.Tape() as tape:
        outs, tensors = taped(op, call, set(differentiable(op, call)))
        seen: list[Any] = [tape.saved_bytes, [(out.shape, out.dtype) for out in outs]]
        pull_back(outs, [np.ones_like(out.data) for out in outs])
    return [*seen, {i: (tensor.grad.shape, tensor.grad.dtype) for i, tensor in tensors.items()}]


FEW_BYTES = 64


@of_every_op(examples=6)
def test_no_op_makes_more_to_save_than_its_inputs_and_outputs_have(op, call):
    with mb.Tape() as tape:
        outs, _ = taped(op, call, set(differentiable(op, call)))
        bound = sum(x.nbytes for x in inputs(op, call) if isinstance(x, np.ndarray)) + sum(out.nbytes for out in outs)
        if op.name == "scaled_dot_product_attention":  # the probabilities, and a byte of mask for each
            query, key = call.args[:2]
            bound += query[..., 0].size * key.shape[-2] * 9
        assert tape.saved_bytes <= bound + FEW_BYTES


@of_every_op(examples=6)
def test_backward_writes_neither_into_its_gradient_nor_into_what_is_saved(op, call):
    call = call.copy()
    outs, kept = kept_by(op, call)
    d_outs = random_like(outs)
    shared = [*leaves(kept), *d_outs]
    before = [array.copy() for array in shared]
    for array in shared:
        array.flags.writeable = False
    first = op.vjp(tuple(d_outs) if op.multiple else d_outs[0], *kept)
    second = op.vjp(tuple(d_outs) if op.multiple else d_outs[0], *kept)
    for array, copy in zip(shared, before, strict=True):
        np.testing.assert_array_equal(array, copy)
    for one, two in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(one, two)
