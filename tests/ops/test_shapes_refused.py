"""Shapes that NumPy would broadcast to something that nobody meant are errors."""

from __future__ import annotations

import numpy as np
import pytest

import memback as mb
from memback import ops

ROWS = np.ones((4, 3))


@pytest.mark.parametrize(
    ("W", "b", "message"),
    [
        ((3,), None, r"`weight` must have shape \(in, out\), it has \(3,\)"),
        ((2, 3, 5), None, r"`weight` must have shape \(in, out\), it has \(2, 3, 5\)"),
        ((4, 2), None, r"`input` of shape \(4, 3\) has 3 features, `weight` of shape \(4, 2\) takes 4"),
        ((3, 2), (1,), r"`bias` has shape \(1,\), it must have \(2,\)"),
        ((3, 2), (4, 2), r"`bias` has shape \(4, 2\), it must have \(2,\)"),
    ],
)
def test_linear_refuses_what_its_gradients_would_not_fit(W, b, message):
    with pytest.raises(mb.MembackError, match=message):
        ops.linear(ROWS, np.ones(W), None if b is None else np.ones(b))


def test_the_maximum_over_several_dimensions_is_refused_and_not_taken_over_one():
    with pytest.raises(mb.MembackError, match=r"`dim` \(=\(0, 1\)\) must be one dimension or None"):
        ops.max(ROWS, (0, 1))


def test_a_tensor_is_iterated_along_its_first_dimension_as_far_as_it_goes():
    x = mb.Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    first, _, last = x
    ops.sum(first * 2.0 + last).backward()
    np.testing.assert_array_equal(x.grad, [[2, 2], [0, 0], [1, 1]])
    with pytest.raises(TypeError, match="a tensor without dimensions can't be iterated over"):
        iter(mb.Tensor(1.0))
