"""Batch normalisation, and root-mean-square normalisation in one kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch._prims_common import suggest_memory_format

from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import composite, kernel

_aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)


@kernel(
    _aten.native_batch_norm.default,
    _aten._native_batch_norm_legit.default,
    _aten._native_batch_norm_legit.no_stats,
)
def _batch_norm(mode: DeviceMode, func: Any, tensor: Any, *args: Any, **kwargs: Any) -> Any:
    """What is given, and statistics of each channel in float32 or wider; in evaluation there are none."""
    training = next(value for value in args[2:] if isinstance(value, bool))
    layout = suggest_memory_format(tensor)
    copied = None if tensor.is_contiguous(memory_format=layout) else mode.empty(tensor.size(), tensor.dtype)
    out = torch.empty_like(tensor, memory_format=layout)
    mode.memory.meet(out.untyped_storage())
    dtype = torch.float32 if tensor.dtype in _HALVES else tensor.dtype
    channels = (tensor.size(1),) if training else (0,)
    statistics = [torch.empty(channels, dtype=dtype, device=tensor.device) for _ in range(2)]
    for one in statistics:
        mode.memory.meet(one.untyped_storage())
    del copied
    return out, *statistics


@kernel(_aten.native_batch_norm_backward.default)
def _batch_norm_backward(mode: DeviceMode, func: Any, grad: Any, tensor: Any, weight: Any, *args: Any) -> Any:
    mask = args[-1]
    copied = (
        None if grad.is_contiguous(memory_format=suggest_memory_format(tensor)) else mode.empty(grad.size(), grad.dtype)
    )
    dtype = grad.dtype if weight is None else weight.dtype
    made: list[Any] = [torch.empty_like(tensor) if mask[0] else None]
    made += [torch.empty(tensor.size(1), dtype=dtype, device=tensor.device) if wanted else None for wanted in mask[1:]]
    for one in made:
        if one is not None:
            mode.memory.meet(one.untyped_storage())
    del copied
    return tuple(made)


@composite("rms_norm")
def rms_norm(tensor: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """Take the fused kernel, which keeps one number a row."""
    return _aten._fused_rms_norm(tensor, normalized_shape, weight, eps)[0]


@kernel(_aten.native_layer_norm.default)
def _layer_norm(mode: DeviceMode, func: Any, tensor: Any, *args: Any) -> Any:
    """Of what does not lie in order, a copy is normalised."""
    copied = None if tensor.is_contiguous() else mode.empty(tensor.size(), tensor.dtype)
    out = func(tensor, *args)
    for one in out:
        mode.memory.meet(one.untyped_storage())
    del copied
    return out


@kernel(_aten.native_layer_norm_backward.default)
def _layer_norm_backward(mode: DeviceMode, func: Any, grad: Any, tensor: Any, *args: Any) -> Any:
    copied = [mode.empty(one.size(), one.dtype) for one in (grad, tensor) if not one.is_contiguous()]
    out = func(grad, tensor, *args)
    for one in out:
        if one is not None:
            mode.memory.meet(one.untyped_storage())
    del copied
    return out
