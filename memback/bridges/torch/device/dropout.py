"""Dropout in one kernel, which keeps a mask of a byte for each number."""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import composite, kernel

_aten = torch.ops.aten


@composite("dropout")
def dropout(tensor: Any, p: float, train: bool) -> Any:
    """Take the fused kernel wherever something is dropped."""
    if p == 0 or not train or tensor.numel() == 0:
        return tensor
    if p == 1:
        return tensor.mul(tensor.new_zeros(()))
    return _aten.native_dropout(tensor, p, train)[0]


@kernel(_aten.native_dropout.default)
def native_dropout(mode: DeviceMode, func: Any, tensor: Any, p: float, train: bool | None) -> Any:
    """The mask comes first."""
    if train is False or tensor.numel() == 0:
        return func(tensor, p, train)
    mask = torch.empty_like(tensor, dtype=torch.bool)
    mode.memory.meet(mask.untyped_storage())
    return torch.empty_like(tensor), mask
