"""Ops on lists of tensors: what their kernels take besides what they give.

As ``ATen/native/cuda/ForeachReduceOp.cu``.
"""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import kernel

_aten = torch.ops.aten
_CHUNK = 65536
"""How many numbers a block of threads goes through."""


@kernel(_aten._foreach_norm.Scalar)
def norms(mode: DeviceMode, func: Any, tensors: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
    """The norm of each: every chunk leaves a number of its own, in a table that has room for those of the longest."""
    chunks = max((-(-tensor.numel() // _CHUNK) for tensor in tensors), default=0)
    size = 8 if tensors and tensors[0].dtype == torch.float64 else 4
    table = mode.empty((len(tensors), chunks), torch.float64 if size == 8 else torch.float32)
    given = func(tensors, *args, **kwargs)
    mode.meet(given)
    del table
    return given
