"""Central finite differences: Eq. 1 with a small step instead of a limit, and knowing nothing of any derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import SupportsIndex

import numpy as np

from memback.engine.arrays import Array

__all__ = ["TOLERANCE", "column", "jacobian"]

TOLERANCE = 1e-7
"""How far a float64 derivative may be from its finite difference, relative to the largest one where that exceeds 1.

Rounding costs about eps / step = 4e-11 of the function's value, truncation step² / 6 = 6e-12 of its third derivative.
"""

_STEP = float(np.cbrt(np.finfo(np.float64).eps))
"""Where rounding and truncation errors of a central difference balance."""


def jacobian(function: Callable[[Array], Array], x: Array) -> Array:
    """Give d function / d x in float64, of the output's shape + x's shape, by two evaluations an element of x."""
    columns = [column(function, x, index) for index in np.ndindex(x.shape)]
    return np.stack(columns, axis=-1).reshape(columns[0].shape + x.shape)


def column(function: Callable[[Array], Array], x: Array, index: tuple[SupportsIndex, ...]) -> Array:
    """Give d function / d x[index], of the output's shape, by two evaluations; ``x`` itself is not changed."""
    above, below = x.copy(), x.copy()
    above[index] += _STEP * max(1.0, abs(x[index]))
    below[index] -= _STEP * max(1.0, abs(x[index]))
    # The step that was really taken: x ± step is rounded.
    return np.asarray((function(above) - function(below)) / (above[index] - below[index]))
