"""Checks of outputs and gradients for NaN and infinity."""

from __future__ import annotations

from typing import Any

import numpy as np

from memback.engine.arrays import Array, DryArray, is_floating
from memback.engine.errors import AnomalyError
from memback.engine.node import Node
from memback.engine.site import Site, describe

__all__ = ["check_gradients", "check_output"]


def check_gradients(node: Node, grads: list[Any]) -> None:
    """Raise if a gradient that a call gave is not finite."""
    for i, grad in enumerate(grads):
        if grad is not None and not _is_finite(grad):
            raise AnomalyError(f"the backward of {node.describe()} gave NaN or infinity for its input {i}")


def check_output(name: str, out: Any, path: str, site: Site | None) -> None:
    """Raise if what a call gave is not finite."""
    for array in out if isinstance(out, (tuple, list)) else (out,):
        if is_floating(array.dtype) and not _is_finite(array):
            raise AnomalyError(f"{describe(name, path, site)} gave NaN or infinity")


def _is_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite. An array without memory is; it counts the memory of the check."""
    finite: Any = np.isfinite(array).all()
    return isinstance(finite, DryArray) or bool(finite)
