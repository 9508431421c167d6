"""Convolutions by cuDNN, and those of each channel by itself by PyTorch's own kernel.

As ``ATen/native/Convolution.cpp`` and ``cudnn/ConvShared.cpp`` have it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._meta_registrations import calc_conv_nd_return_shape
from torch._prims_common import suggest_memory_format

from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import kernel

_aten = torch.ops.aten
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@kernel(_aten.convolution.default)
def _convolution(
    mode: DeviceMode,
    func: Any,
    tensor: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    _note(mode, tensor.dtype)
    layout = _layout(tensor, weight, groups, transposed)
    held = [_laid_out(mode, tensor, layout)]
    size = calc_conv_nd_return_shape(
        tensor, weight, stride, padding, dilation, transposed, groups, output_padding if transposed else None
    )
    out = torch.empty(size, dtype=tensor.dtype, device=tensor.device, memory_format=layout)
    mode.memory.meet(out.untyped_storage())
    held.append(_laid_out(mode, weight, layout))
    del held
    return out


@kernel(_aten.convolution_backward.default)
def _backward(
    mode: DeviceMode,
    func: Any,
    grad: Any,
    tensor: Any,
    weight: Any,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    mask: Any,
) -> Any:
    layout = _layout(tensor, weight, groups, transposed)
    held = [_laid_out(mode, one, layout) for one in (tensor, grad)]
    made = []
    for wanted, like in zip(mask[:2], (tensor, weight), strict=True):
        one = torch.empty(like.size(), dtype=like.dtype, device=like.device, memory_format=layout) if wanted else None
        if one is not None:
            mode.memory.meet(one.untyped_storage())
            _laid_out(mode, weight if like is tensor else None, layout)
        made.append(one)
    del held
    over = [dim for dim in range(grad.dim()) if dim != 1]
    return (*made, mode.run(_aten.sum.dim_IntList, grad, over) if mask[2] else None)


def _layout(tensor: Any, weight: Any, groups: int, transposed: bool) -> Any:
    """How cuDNN has numbers lie: channels last where the input or the weight suggests it."""
    if tensor.dim() not in _LAST or _is_by_channel(tensor, weight, groups, transposed):
        return torch.contiguous_format
    last = _LAST[tensor.dim()]
    return last if last in (suggest_memory_format(tensor), suggest_memory_format(weight)) else torch.contiguous_format


def _is_by_channel(tensor: Any, weight: Any, groups: int, transposed: bool) -> bool:
    """Whether PyTorch's own kernel for channels by themselves is taken."""
    each = groups > 1 and tensor.size(1) == groups and weight.size(0) % groups == 0 and not transposed
    last = _LAST.get(tensor.dim())
    return each and last not in (suggest_memory_format(tensor), suggest_memory_format(weight))


def _laid_out(mode: DeviceMode, tensor: Any, layout: Any) -> Any:
    """The copy of a tensor that lies otherwise; None of one that need not be copied, or is none."""
    if tensor is None or tensor.is_contiguous(memory_format=layout):
        return None
    return mode.empty(tensor.size(), tensor.dtype)


def _note(mode: DeviceMode, dtype: torch.dtype) -> None:
    """Say what is not known; of bfloat16 cuDNN has convolutions on cards that compute in it."""
    if torch.backends.cudnn.enabled and (dtype != torch.bfloat16 or mode.card.capability >= (8, 0)):
        mode.unmodelled.setdefault("convolution", "what cuDNN takes as workspace")
    else:
        mode.unmodelled.setdefault("convolution", "what it takes without cuDNN")
