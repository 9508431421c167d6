"""Linear layers: PyTorch adds the bias of a fake tensor's product to a copy, and that of a real one in place."""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.registry import composite

_aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@composite("linear")
def linear(tensor: Any, weight: Any, bias: Any = None) -> Any:
    """Add the bias in place where it is not added by the product itself."""
    if bias is None or tensor.dim() < 3 or tensor.is_contiguous():
        return _aten.linear.default._op_dk(_COMPOSITE, tensor, weight, bias)
    return _aten.matmul(tensor, weight.t()).add_(bias)
