from __future__ import annotations

import numpy as np
import pytest

from memback.notes import Check


@pytest.mark.parametrize(
    ("value", "reference", "ok"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.1], [1.0, 2.0], True),  # 0.1 of 2
        ([1.0, 2.3], [1.0, 2.0], False),
        ([0.05], [0.0], True),  # absolute where references are small
        ([0.2], [0.1], True),
        ([0.25], [0.1], False),
        ([np.nan], [0.0], False),
        ([0.0], [np.nan], False),
        ([np.inf], [0.0], False),
        ([[1.0]], [1.0], False),
        ([], [], False),
    ],
)
def test_near_is_within_the_tolerance_of_the_largest_reference(value, reference, ok):
    check = Check.near("claim", "1", value, reference, 0.1 + 1e-12)
    assert check.ok is ok
    assert check.error is None or np.isfinite(check.error)


def test_exact_takes_no_error_at_all():
    assert Check.near("claim", "1", [3], [3], 0.0).ok
    assert not Check.near("claim", "1", [3], [4], 0.0).ok


@pytest.mark.parametrize(
    ("values", "ok"),
    [
        ({"W": np.array([0.0])}, True),
        ({"W": np.array([-0.0])}, False),
        ({"W": np.array([0.0], np.float32)}, False),
        ({"W": np.array([[0.0]])}, False),
        ({"b": np.array([0.0])}, False),
        ({}, False),
    ],
)
def test_same_bits_looks_at_names_dtypes_shapes_and_signs(values, ok):
    assert Check.same_bits("claim", "1", values, {"W": np.array([0.0])}).ok is ok
