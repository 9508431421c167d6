"""NumPy's functions on Tensors: the op that means the same, with its gradient, or a refusal; no arrays of objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import ops
from memback.dry.array import ShapeArray
from memback.ops import numpy_functions

A, B = np.array([[0.3, 2.0, 1.5], [4.0, 0.7, 0.9]]), np.array([[1.3, 0.2, 2.5], [0.4, 1.7, 3.0]])

FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    **{
        u.__name__: lambda x, y, u=u: u(x, y) if u.nin == 2 else u(x)
        for u in numpy_functions._UFUNCS
        if u is not np.matmul
    },
    "matmul": lambda x, y: np.matmul(x, np.transpose(y)),
    "amax": lambda x, y: np.amax(x),
    "broadcast_to": lambda x, y: np.broadcast_to(x, (2, 2, 3)),
    "broadcast_to a number of elements": lambda x, y: np.broadcast_to(np.max(x), 3),
    "concatenate": lambda x, y: np.concatenate([x, y]),
    "concatenate along the last": lambda x, y: np.concatenate((x, y), axis=-1),
    "concatenate with arrays": lambda x, y: np.concatenate((x, B)),
    "max": lambda x, y: np.max(x, axis=1, keepdims=True),
    "mean": lambda x, y: np.mean(x, axis=(0, 1)),
    "permute_dims": lambda x, y: np.permute_dims(x, (1, 0)),
    "reshape": lambda x, y: np.reshape(x, (3, -1)),
    "reshape to one": lambda x, y: np.reshape(x, -1),
    "stack": lambda x, y: np.stack([x, y, x], axis=1),
    "sum": lambda x, y: np.sum(x),
    "sum of rows": lambda x, y: np.sum(x, axis=-1, keepdims=True),
    "swapaxes": lambda x, y: np.swapaxes(x, 0, 1),
    "transpose": lambda x, y: np.transpose(x),
    "transpose by axes": lambda x, y: np.transpose(x, (1, 0)),
    "var": lambda x, y: np.var(x, axis=1),
    "var of a sample": lambda x, y: np.var(x, ddof=1),
    "where": lambda x, y: np.where(x > y, x, y),
    "an array first": lambda x, y: A + x,
    "a number of NumPy's first": lambda x, y: np.float64(3.0) / x,
    "an array and @": lambda x, y: A.T @ x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_an_op_gives_numpys_values_and_the_gradient(name: str) -> None:
    function = FUNCTIONS[name]
    x, y = mb.Tensor(A.copy(), requires_grad=True), mb.Tensor(B.copy(), requires_grad=True)
    out, expected = function(x, y), function(A, B)
    assert isinstance(out, mb.Tensor)
    assert out.shape == np.shape(expected)
    np.testing.assert_allclose(out.data, expected, rtol=1e-12)
    weights = np.linspace(1, 2, out.size).reshape(out.shape)
    out.backward(weights)
    for tensor, which in ((x, 0), (y, 1)):
        if tensor.grad is None:
            continue
        for index in np.ndindex(A.shape):
            moved = [A.copy(), B.copy()]
            moved[which][index] += 1e-6
            slope = np.sum(weights * (function(*moved) - expected)) / 1e-6
            assert tensor.grad[index] == pytest.approx(slope, rel=1e-4, abs=1e-4)
    assert x.grad is not None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_goes_through_on_a_dry_run(name: str) -> None:
    with mb.dry_run():
        x, y = (mb.Tensor(ShapeArray((2, 3), np.float64), requires_grad=True) for _ in range(2))
        out = FUNCTIONS[name](x, y)
        assert isinstance(out, mb.Tensor)
        assert out.shape == np.shape(FUNCTIONS[name](A, B))


REFUSED: dict[str, Callable[[Any], Any]] = {
    "np.cumsum": np.cumsum,
    "np.hypot": lambda x: np.hypot(x, x),
    "np.linalg.norm": np.linalg.norm,
    "np.vstack": lambda x: np.vstack([x, x]),
    "np.add.reduce": np.add.reduce,
    "np.exp with out": lambda x: np.exp(x, out=np.empty((2, 3))),
    "np.add with out": lambda x: np.add(A, A, out=x),
    "np.sum with dtype": lambda x: np.sum(x, dtype=np.float32),
    "np.where, with these arguments,": lambda x: np.where(x),
    "np.concatenate with axis=None": lambda x: np.concatenate([x, x], axis=None),
    "np.allclose": lambda x: np.allclose(x, x),
    "np.einsum": lambda x: np.einsum("ij->i", x),
    "np.array_equal": lambda x: np.array_equal(x, A),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_any_other_function_is_refused_by_name_with_a_remedy(name: str, requires_grad: bool) -> None:
    with pytest.raises(mb.OpError) as caught:
        REFUSED[name](mb.Tensor(A, requires_grad=requires_grad))
    assert str(caught.value).startswith(f"{name} at test_numpy_functions.py:")
    assert "tensor.numpy()" in str(caught.value)


def test_a_sum_that_numpy_takes_in_a_wider_type_is_refused() -> None:
    with pytest.raises(mb.OpError, match=r"np\.sum of bool at .*tensor\.numpy\(\)"):
        np.sum(mb.Tensor(A > 1))


def test_no_function_of_numpys_makes_an_array_of_objects_of_tensors() -> None:
    """All that one array, or a list of two, can be given to."""
    tensors = [mb.Tensor(A.copy(), requires_grad=grad) for grad in (True, False)]
    functions = [f for f in vars(np).values() if callable(f) and not isinstance(f, type) and f is not np.test]
    tried = 0
    for function in functions:
        for x in tensors:
            for given in ((x,), (x, x), ([x, x],), (x, 0)):
                if getattr(function, "__name__", "") in (
                    "save",
                    "savetxt",
                    "savez",
                    "savez_compressed",
                    "info",
                    "test",
                ):
                    continue
                try:
                    with np.errstate(all="ignore"):
                        result = function(*given)
                except Exception:
                    continue
                tried += 1
                for array in result if isinstance(result, (tuple, list)) else (result,):
                    assert not (isinstance(array, np.ndarray) and array.dtype == object), function
    assert tried > 50


@pytest.mark.parametrize("make", [np.asarray, np.array, np.ascontiguousarray, lambda x: np.array([x, x])[0]])
def test_an_array_is_made_of_a_tensor_unless_it_requires_gradients(make: Callable[[Any], Any]) -> None:
    x = mb.Tensor(A.copy())
    made = make(x)
    assert made.dtype == np.float64
    np.testing.assert_array_equal(made, A)
    assert np.asarray(x) is x.data
    assert np.asarray(x, np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(x), x.data)
    with pytest.raises(mb.TapeError, match=r"requires gradients off .* tensor\.numpy\(\), or tensor\.detach\(\)"):
        make(mb.Tensor(A, requires_grad=True))


def test_a_tensor_of_a_list_of_tensors_is_one_of_their_numbers() -> None:
    x = mb.Tensor([mb.Tensor(A), mb.Tensor(B)])
    np.testing.assert_array_equal(x.data, [A, B])


def test_truth_values_are_plain_arrays() -> None:
    x = mb.Tensor(A, requires_grad=True)
    for function in (np.isnan, np.isfinite, np.isinf):
        np.testing.assert_array_equal(function(x), function(A))
    np.testing.assert_array_equal(np.less(x, mb.Tensor(B)), A < B)
    np.testing.assert_array_equal(x < B, B > A)


def test_shapes_are_told_and_arrays_of_the_same_shape_made() -> None:
    x = mb.Tensor(A, requires_grad=True)
    assert (np.shape(x), np.ndim(x), np.size(x)) == ((2, 3), 2, 6)
    np.testing.assert_array_equal(np.full_like(x, 2.0), np.full((2, 3), 2.0))
    assert type(np.zeros_like(x)) is np.ndarray


@pytest.mark.parametrize("make", [np.ones, ShapeArray], ids=["real", "dry"])
def test_an_array_before_a_tensor_leaves_the_operator_to_the_tensor(make: Any) -> None:
    x = mb.Tensor(make((2, 3)), requires_grad=True)
    for out in (make((2, 3)) + x, make((2, 3)) - x, make((3, 2)) @ x, make((2, 3)) ** x):
        assert isinstance(out, mb.Tensor)
        assert out.requires_grad


# -- tensors as indices


def test_an_index_that_is_a_tensor_has_the_gradient_of_the_same_array() -> None:
    for index in (mb.Tensor(np.array([0, 0, 1])), (mb.Tensor(np.array([0, 0, 1])), 1), mb.Tensor(A > 1)):
        plain = tuple(getattr(i, "data", i) for i in index) if isinstance(index, tuple) else index.data
        x, y = mb.Tensor(A.copy(), requires_grad=True), mb.Tensor(A.copy(), requires_grad=True)
        out, expected = x[index], y[plain]
        np.testing.assert_array_equal(out.data, expected.data)
        ops.sum(out).backward()
        ops.sum(expected).backward()
        np.testing.assert_array_equal(x.grad, y.grad)


def test_errors_name_the_line_that_called_numpy() -> None:
    t = mb.Tensor(np.ones(3), requires_grad=True)
    with pytest.raises(mb.TapeError, match=r"at test_numpy_functions\.py:\d+ would cut"):
        np.testing.assert_allclose(t, 1)
