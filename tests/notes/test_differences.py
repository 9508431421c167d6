from __future__ import annotations

import numpy as np

from memback.notes import differences


def test_a_jacobian_has_the_outputs_shape_then_the_inputs():
    matrix = np.arange(24.0).reshape(2, 3, 4)
    found = differences.jacobian(lambda x: np.einsum("ijk,jk->i", matrix, x), np.ones((3, 4)))
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found, matrix, rtol=0, atol=1e-8)


def test_a_curved_function_is_as_near_as_the_tolerance_says():
    x = np.array([0.3, -2.0, 1.0])
    found = differences.jacobian(np.sin, x)
    np.testing.assert_allclose(found, np.diag(np.cos(x)), rtol=0, atol=differences.TOLERANCE)


def test_a_point_is_not_changed():
    x = np.array([1.0, 2.0])
    differences.jacobian(np.square, x)
    np.testing.assert_array_equal(x, [1.0, 2.0])
