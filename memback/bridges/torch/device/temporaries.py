"""Tensors that kernels make for themselves, of the size of what they are given."""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import kernel

_aten = torch.ops.aten


@kernel(_aten._softmax_backward_data.default)
def _softmax_backward(mode: DeviceMode, func: Any, grad: Any, out: Any, *more: Any) -> Any:
    """The product of the gradient and the softmax, as ``SoftMax.cu`` has it."""
    made = func(grad, out, *more)
    mode.memory.meet(made.untyped_storage())
    mode.memory.scratch(grad.numel() * torch.result_type(grad, out).itemsize)
    return made


@kernel(_aten.roll.default)
def _roll(mode: DeviceMode, func: Any, tensor: Any, shifts: Any, dims: Any = ()) -> Any:
    """One dimension after the other, each into a tensor of its own, as ``roll_common`` has it."""
    for _ in dims[1:]:
        tensor = mode.empty(tensor.size(), tensor.dtype)
    copied = None if tensor.is_contiguous() else mode.empty(tensor.size(), tensor.dtype)
    out = mode.empty(tensor.size(), tensor.dtype)
    del copied
    return out


@kernel(_aten._safe_softmax.default)
def _safe_softmax(mode: DeviceMode, func: Any, tensor: Any, dim: int, *more: Any, **named: Any) -> Any:
    """What says of each number whether it is minus infinity, and of each row whether all are."""
    made = func(tensor, dim, *more, **named)
    mode.memory.meet(made.untyped_storage())
    held = [
        mode.empty((number,), torch.bool) for number in (tensor.numel(), tensor.numel() // max(tensor.size(dim), 1))
    ]
    while held:
        held.pop()
    return made
