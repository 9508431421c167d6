"""Where PyTorch's fake kernels give other storages than the kernels of a CPU: what is right instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._prims_common import suggest_memory_format

__all__ = ["corrected", "instead"]

_aten = torch.ops.aten

_Correction = Callable[[Any, Any, Any], Any]


def corrected(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """What a fake op gives, with the storages that the real one gives."""
    correction = _CORRECTIONS.get(func)
    return out if correction is None else correction(args, kwargs, out)


def instead(func: Any) -> Callable[..., Any] | None:
    """What stands for an op that has no fake kernel, or one that refuses what the real one takes."""
    return _INSTEAD.get(func)


def _as(dtype: torch.dtype, tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else torch.empty_like(tensor, dtype=dtype)


def _statistics(weights: int) -> _Correction:
    """Normalisations keep statistics in the type of the weights, which are arguments from ``weights`` on."""

    def correct(args: Any, kwargs: Any, out: Any) -> Any:
        if args[0].device.type != "cpu":
            return out
        weight = next((a for a in args[weights:] if isinstance(a, torch.Tensor)), args[0])
        return (out[0], *(_as(weight.dtype, statistic) for statistic in out[1:]))

    return correct


def _group_norm_backward(args: Any, kwargs: Any, out: Any) -> Any:
    """Group normalisation gives a gradient in the type of the input."""
    return (_as(args[1].dtype, out[0]), *out[1:]) if args[0].device.type == "cpu" else out


def _contiguous(args: Any, kwargs: Any, out: Any) -> Any:
    """What is given first is contiguous, whatever the strides of the input."""
    return _with_first(out, torch.contiguous_format)


def _in_format(of: int) -> _Correction:
    """What is given first is contiguous, or has its channels last where the argument ``of`` suggests it."""
    return lambda args, kwargs, out: _with_first(out, suggest_memory_format(args[of]))


def _with_first(out: Any, layout: torch.memory_format) -> Any:
    first = out if isinstance(out, torch.Tensor) else out[0]
    if first is None or first.device.type != "cpu" or first.is_contiguous(memory_format=layout):
        return out
    laid_out = torch.empty_like(first, memory_format=layout)
    return laid_out if first is out else (laid_out, *out[1:])


def _batch_norm(args: Any, kwargs: Any, out: Any) -> Any:
    return _in_format(0)(args, kwargs, _statistics(1)(args, kwargs, out))


def _dropout_backward(args: Any, kwargs: Any, out: Any) -> Any:
    """Strides are those of the gradient."""
    return torch.empty_like(args[0]) if out.device.type == "cpu" else out


def _copied_whole(args: Any, kwargs: Any, out: Any) -> Any:
    """What an op writes into a copy of its input is in a copy of the input's whole storage."""
    return _roomy(out, args[0].untyped_storage().nbytes() // out.element_size())


def _reduced_loss(args: Any, kwargs: Any, out: Any) -> Any:
    """A loss that is one number is written into a storage that has held, and has room for, that of each element."""
    return _roomy(out, torch.broadcast_shapes(args[0].shape, args[1].shape).numel()) if out.numel() == 1 else out


def _embedding_bag(args: Any, kwargs: Any, out: Any) -> Any:
    """Numbers of bags have room for one more than there are indices, if a sum needs them at all; sizes for each offset.

    As EmbeddingBag.cpp has it.
    """
    weight, indices, offsets = args[:3]
    mode, padding = _given(args, kwargs, 4, "mode", 0), _given(args, kwargs, 8, "padding_idx", -1)
    scale = _given(args, kwargs, 6, "per_sample_weights")
    if weight.device.type != "cpu":
        return out
    is_fast = weight.dtype in (torch.float32, torch.float16, torch.bfloat16) and weight.stride(1) == 1 and padding < 0
    if mode == 0 and is_fast and (scale is None or scale.stride(0) == 1):
        bags = out[1].new_empty(0)
    else:
        bags = _roomy(offsets.new_empty(indices.size(0)), indices.size(0) + 1)
    return out[0], bags, _roomy(out[2], offsets.size(0)), out[3]


def _embedding_bag_forward_only(args: Any, kwargs: Any, out: Any) -> Any:
    """As :func:`_embedding_bag`; a sum's sizes, and what is as large, count the last offset."""
    mode, offsets = _given(args, kwargs, 4, "mode", 0), args[2]
    _, bags, sizes, largest = _embedding_bag(args, kwargs, out)
    if args[0].device.type == "cpu" and mode == 0:
        return out[0], bags, sizes, largest.new_empty(offsets.size())
    if args[0].device.type == "cpu":
        return out[0], bags, _roomy(sizes.new_empty(out[0].size(0)), offsets.size(0)), largest
    return out


def _given(args: Any, kwargs: Any, number: int, name: str, otherwise: Any = None) -> Any:
    """An argument, by its position or name."""
    return args[number] if number < len(args) else kwargs.get(name, otherwise)


def _mkldnn_rnn_layer(args: Any, kwargs: Any, out: Any) -> Any:
    """What oneDNN's recurrent layer keeps for itself where gradients are on, laid out in pages as oneDNN does it."""
    if not torch.is_grad_enabled():
        return out
    x, hidden = args[0], _given(args, kwargs, 10, "hidden_size")
    steps, batch, features = x.shape
    size = _workspace(steps, batch, features, hidden, x.element_size())
    return (*out[:3], torch.empty(size, dtype=torch.uint8))


def _mkldnn_rnn_layer_backward(args: Any, kwargs: Any, out: Any) -> Any:
    """Gradients of the two biases are two tensors."""
    return (*out[:4], torch.empty_like(out[4]), *out[5:])


def _workspace(steps: int, batch: int, features: int, hidden: int, itemsize: int) -> int:
    """Bytes of a layer's workspace: gates, hidden states, and those of layers and cells with their gradients."""

    def line(numbers: int, size: int) -> int:
        """The bytes of a line: whole cache lines, but no multiple of 256 numbers."""
        a_cache_line = 64 // size
        length = -(-numbers // a_cache_line) * a_cache_line
        return (length + a_cache_line if length % 256 == 0 else length) * size

    widest, states = max(features, hidden), 2 * (steps + 1) * batch
    parts = (
        steps * batch * line(4 * hidden, itemsize),
        steps * batch * line(hidden, itemsize),
        states * line(widest, itemsize),
        states * hidden * itemsize,
        states * line(widest, 4),
        states * line(widest, 4),
        states * hidden * 4,
    )
    return sum(-(-part // _PAGE) * _PAGE for part in parts)


_PAGE = 4096


def _grouped_mm(
    a: torch.Tensor, b: torch.Tensor, offs: Any = None, bias: Any = None, out_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Products of groups of matrices, in lines of whole 16 bytes, of any dtype; the fake one takes bfloat16 alone.

    Of what is two-dimensional the groups are side by side, and end at ``offs``.
    """
    if a.dim() == b.dim():
        groups = offs.size(0) if a.dim() == 2 else a.size(0)
        shape = [groups, a.size(-2), b.size(-1)]
    else:
        shape = [a.size(-2), b.size(-1)]
    dtype = out_dtype or a.dtype
    unit = 16 // dtype.itemsize
    line = -(-shape[-1] // unit) * unit
    stride = [line, 1] if len(shape) == 2 else [shape[1] * line, line, 1]
    return torch.empty_strided(shape, stride, dtype=dtype, device=a.device)


def _roomy(tensor: torch.Tensor, numbers: int) -> torch.Tensor:
    """Such a tensor in a storage for so many numbers, if that is larger than the one it has."""
    if numbers * tensor.element_size() <= tensor.untyped_storage().nbytes():
        return tensor
    room = torch.empty(numbers, dtype=tensor.dtype, device=tensor.device)
    return room.as_strided(tensor.size(), tensor.stride())


_CORRECTIONS: dict[Any, _Correction] = {
    _aten.native_batch_norm.default: _batch_norm,
    _aten._native_batch_norm_legit.default: _batch_norm,
    _aten._batch_norm_with_update.default: _in_format(0),
    _aten.native_group_norm.default: _statistics(1),
    _aten.native_layer_norm.default: _statistics(2),
    _aten.native_group_norm_backward.default: _group_norm_backward,
    _aten.native_layer_norm_backward.default: _contiguous,
    _aten._log_softmax_backward_data.default: _contiguous,
    _aten.pow.Scalar: _contiguous,
    _aten.replication_pad2d_backward.default: _in_format(1),
    _aten.max_unpool2d.default: _in_format(0),
    _aten.channel_shuffle.default: _in_format(0),
    _aten.native_dropout_backward.default: _dropout_backward,
    _aten.diagonal_scatter.default: _copied_whole,
    _aten.select_scatter.default: _copied_whole,
    _aten.slice_scatter.default: _copied_whole,
    _aten.mse_loss.default: _reduced_loss,
    _aten.smooth_l1_loss.default: _reduced_loss,
    _aten.binary_cross_entropy.default: _reduced_loss,
    _aten.soft_margin_loss.default: _reduced_loss,
    _aten._embedding_bag.default: _embedding_bag,
    _aten._embedding_bag_forward_only.default: _embedding_bag_forward_only,
    _aten.mkldnn_rnn_layer.default: _mkldnn_rnn_layer,
    _aten.mkldnn_rnn_layer_backward.default: _mkldnn_rnn_layer_backward,
}
_INSTEAD: dict[Any, Callable[..., Any]] = {}
if hasattr(_aten, "_grouped_mm"):
    _INSTEAD[_aten._grouped_mm.default] = _grouped_mm
