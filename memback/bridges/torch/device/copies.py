"""``Tensor.to``: what is on the card already stays."""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.registry import composite

_aten = torch.ops.aten


@composite("to.dtype_layout")
def to_dtype_layout(
    tensor: Any,
    *,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: Any = None,
) -> Any:
    """Copy to another device or type, if it is another."""
    return _to(tensor, device, dtype, copy, memory_format)


@composite("to.device")
def to_device(
    tensor: Any, device: Any, dtype: Any, non_blocking: bool = False, copy: bool = False, memory_format: Any = None
) -> Any:
    """Copy to another device or type, if it is another."""
    return _to(tensor, device, dtype, copy, memory_format)


def _to(tensor: Any, device: Any, dtype: Any, copy: bool, memory_format: Any) -> Any:
    away = device is not None and device.type == "cpu"
    if not away and not copy and dtype in (None, tensor.dtype) and memory_format in (None, torch.preserve_format):
        return tensor
    return _aten._to_copy(tensor, dtype=dtype, device=device if away else None, memory_format=memory_format)
