"""Dtypes that do harm without a sign of it: too narrow for the gradients, or wider than the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from memback.engine.tensor import Tensor
from memback.profiling.accounts import Row

__all__ = ["PrecisionWarning", "floating_dtypes", "warn_of_subnormal_gradients", "warn_of_wider_values"]


class PrecisionWarning(UserWarning):
    """A dtype is too narrow for a step's gradients, or wider than its parameters.

    Gradients are looked at after backward: those of the first step of a training and of every hundredth after it, and
    those of the first mode of a profile that is run for real. The dtypes of values are those that ops gave in forward.
    """


def warn_of_subnormal_gradients(parameters: Iterable[tuple[str, Tensor]], stacklevel: int = 2) -> bool:
    """Warn where the largest gradient of a weight is a subnormal number of its dtype, and say whether it was so.

    Each gradient is read twice. Vectors are not looked at, because the gradient of some (biases of attention's keys) is
    0 but for rounding.

    Args:
        parameters: with their names, after backward.
        stacklevel: as in :func:`warnings.warn`.
    """
    small = [(name, p.grad, largest) for name, p in parameters if (largest := _largest(p)) and largest < _normal(p)]
    if not small:
        return False
    name, grad, largest = small[0]
    others = f" and of {len(small) - 1} more weights" if len(small) > 1 else ""
    warnings.warn(
        f"the gradients of {name}{others} are subnormal {grad.dtype} numbers (of {name} at most {largest:.1e}; below"
        f" {_normal(grad):.1e} digits are lost): slow on many processors, and nothing is learnt there. {_remedy(grad)}",
        PrecisionWarning,
        stacklevel + 1,
    )
    return True


def _largest(parameter: Tensor) -> float:
    """The largest absolute value of a weight's gradient; 0 where it has none."""
    grad = parameter.grad
    if grad is None or grad.ndim < 2 or not grad.size:
        return 0.0
    return float(max(grad.max(), -grad.min()))


def _normal(array: Any) -> float:
    """The smallest normal number of an array's dtype."""
    if array.dtype.kind == "f":
        return float(np.finfo(array.dtype).smallest_normal)
    import ml_dtypes

    info: Any = ml_dtypes.finfo  # has no types
    return float(info(array.dtype).smallest_normal)


def _remedy(grad: Any) -> str:
    if grad.dtype == np.float16:
        return (
            "Multiply the loss by a large number before backward and divide the gradients by it (loss scaling), or use"
            " bfloat16, which has the range of float32"
        )
    return (
        "Begin with weights that keep signals at their size from layer to layer (in a profile"
        ' of an mlp: model.initialisation = "looks_linear"), normalise, or add residual connections'
    )


def floating_dtypes(rows: Iterable[Row]) -> list[str]:
    """The floating-point dtypes of what calls gave, in the order in which they came up."""
    return [name for name in dict.fromkeys(row.dtype for row in rows) if "float" in name]


def warn_of_wider_values(rows: Sequence[Row], parameters: Iterable[Tensor], stacklevel: int = 2) -> None:
    """Warn where a call gave a wider floating-point dtype than all parameters have; the first such call is named.

    Args:
        rows: the calls of a forward pass, in their order.
        parameters: of the model; nothing is said where there are none.
        stacklevel: as in :func:`warnings.warn`.
    """
    given = max((p.dtype for p in parameters), key=lambda dtype: dtype.itemsize, default=None)
    if given is None:
        return
    wider = [name for name in floating_dtypes(rows) if np.dtype(name).itemsize > given.itemsize]
    if not wider:
        return
    row = next(row for row in rows if row.dtype in wider)
    where = f"{row.op} in {row.path}" if row.path else row.op
    warnings.warn(
        f"parameters are {given}, but {where}{f' ({row.source})' if row.source else ''} gave {row.dtype}, and so do the"
        f" calls that use it: their values take {np.dtype(row.dtype).itemsize / given.itemsize:g} times the bytes. Give"
        f" inputs, targets and other arrays as {given}, and NumPy's scalars as Python's: x.astype({str(given)!r}),"
        " float(s)",
        PrecisionWarning,
        stacklevel + 1,
    )
