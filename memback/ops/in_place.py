"""Python's ``+=`` and the other in-place operators on Tensors, with PyTorch's meaning.

Where nothing is recorded, the array itself is changed and the change is reported to the tape. Where the change is
recorded, the tensor becomes the output of a new call, and values saved earlier stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from memback.engine.arrays import form
from memback.engine.errors import TapeError
from memback.engine.op import Op, OpError
from memback.engine.site import call_site, short_path
from memback.engine.state import current
from memback.engine.tensor import Tensor
from memback.ops import elementwise, linear_algebra

__all__ = ["IN_PLACE"]

Change = Callable[[Tensor, Any], Tensor]


def _in_place(symbol: str, op: Op, ufunc: np.ufunc) -> Change:
    def change(self: Tensor, other: Any) -> Tensor:
        others = isinstance(other, Tensor) and other.requires_grad
        if current().tape is None or not (self.requires_grad or others):
            operand = other.data if isinstance(other, Tensor) else other
            return _write(self, symbol, lambda target: _apply(ufunc, target, operand))
        if self.requires_grad and self.node is None:
            raise TapeError(
                f"`{symbol}` at {short_path(call_site())} would change a leaf that requires gradients while the tape"
                f" records: change it under mb.no_grad() (or let an optimiser do it), or write x = x {symbol[:-1]} y"
                " for a new tensor"
            )
        return _become(self, symbol, op(self, other))

    return change


def _apply(ufunc: np.ufunc, target: Any, operand: Any) -> None:
    if target.dtype.kind == "V" and not hasattr(operand, "dtype"):  # NumPy has no Python numbers beside bfloat16
        operand = np.asarray(operand, target.dtype)
    ufunc(target, operand, out=target)


def _write(tensor: Tensor, symbol: str, change: Callable[[Any], None]) -> Tensor:
    site = short_path(call_site())
    try:
        tensor.change(change, f"{symbol} at {site}")
    except (TypeError, ValueError) as error:
        raise OpError(
            f"`{symbol}` at {site} can't change {_form(tensor)} in place: {error}. Write x = x {symbol[:-1]} y for a"
            " new tensor"
        ) from error
    return tensor


def _become(tensor: Tensor, symbol: str, out: Any) -> Tensor:
    if (out.shape, out.dtype) != (tensor.shape, tensor.dtype):
        raise OpError(
            f"`{symbol}` at {short_path(call_site())} can't change {_form(tensor)} in place: the result is"
            f" {_form(out)}. Write x = x {symbol[:-1]} y for a new tensor"
        )
    tensor.data, tensor.node, tensor.requires_grad = out.data, out.node, out.requires_grad
    return tensor


def _form(tensor: Tensor) -> str:
    return form(tensor.dtype, tensor.shape)


IN_PLACE: dict[str, Change] = {
    "__iadd__": _in_place("+=", elementwise.add, np.add),
    "__isub__": _in_place("-=", elementwise.subtract, np.subtract),
    "__imul__": _in_place("*=", elementwise.multiply, np.multiply),
    "__itruediv__": _in_place("/=", elementwise.divide, np.divide),
    "__ipow__": _in_place("**=", elementwise.power, np.power),
    "__imatmul__": _in_place("@=", linear_algebra.matmul, np.matmul),
}
"""The operators by the names of their methods."""
