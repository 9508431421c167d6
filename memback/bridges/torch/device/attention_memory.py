"""What attention's kernels take while they run, and where they leave the state of the random stream.

As the host code before their launch takes it: ``attention_backward.cu`` and ``kernel_backward.h`` for the efficient
kernel, ``flash_api.cpp`` for the flash kernel.
"""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import kernel

_aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)


# -- the efficient kernel


@kernel(_aten._scaled_dot_product_efficient_attention.default)
def _efficient(mode: DeviceMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    """The random stream's state is on the CPU where it is drawn from, and else two numbers on the card."""
    out, sums, seed, offset = func(*args, **kwargs)
    query, value = args[0], args[2]
    unused = (args[5] if len(args) > 5 else kwargs.get("dropout_p", 0.0)) == 0
    if unused:
        for state in (seed, offset):
            mode.memory.meet(state.untyped_storage())
    for made in (out, sums):
        mode.memory.meet(made.untyped_storage())
    if value.size(-1) > 128 and query.dtype in _HALVES:
        mode.memory.scratch(out.numel() * 4)
    if unused:
        return out, sums, seed, offset
    return out, sums, torch.empty_like(seed, device="cpu"), torch.empty_like(offset, device="cpu")


@kernel(_aten._scaled_dot_product_efficient_attention_backward.default)
def _efficient_backward(mode: DeviceMode, func: Any, grad: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
    key, value = args[:2]
    dropout = args[7]
    copied = _contiguous(mode, grad)
    grads = func(grad, query, *args, **kwargs)
    for made in grads:
        if made is not None:
            mode.memory.meet(made.untyped_storage())
    batch, heads, rows, _ = query.shape
    deltas = 4 * batch * heads * rows
    if query.dtype in _HALVES:
        held = [mode.memory.take(deltas)]
    else:
        product, sums = mode.memory.take(4 * grad.numel()), mode.memory.take(deltas)
        held = [mode.memory.take(deltas)]
        mode.memory.give_back(sums)
        mode.memory.give_back(product)
    workspace = _workspace(mode.card, query, key, value, dropout > 0)
    if workspace:
        held.append(mode.memory.take(workspace))
    for block in held:
        mode.memory.give_back(block)
    del copied
    return grads


def _workspace(card: Card, query: Any, key: Any, value: Any, dropout: bool) -> int:
    """Bytes in which blocks of threads add up gradients of queries, and of keys and values where these don't fit."""
    batch, heads, rows, size = query.shape
    wide = value.size(-1)
    is_half = query.dtype in _HALVES
    high, across, widest = _tile(card, is_half, max(size, wide), dropout)
    elements = -(-rows // high) * -(-size // across) * (16 + 4 * high * across) // 4
    if is_half and widest > high:
        splits = -(-key.size(2) // across)
        if batch * heads >= 256 and key.size(2) <= 2 * across:
            splits = 1
        splits = max(min(splits, 200 // (batch * heads)), 1)
        elements += splits * across * (_up(size, high) + _up(wide, high))
    return batch * heads * _up(elements, 4) * 4


def _tile(card: Card, is_half: bool, size: int, dropout: bool) -> tuple[int, int, int]:
    """Rows and columns of a block of threads, and the widest head that its kernel is for."""
    roomy = card.capability in ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3))
    newer = card.capability >= (8, 0)
    for widest in (32, 64):
        if size <= widest:
            return 64, 64, widest
    if is_half and card.capability in ((8, 6), (8, 9)) and size <= 96 and not dropout:
        return 128, 64, 96
    if size <= 128:
        return (128, 128 if is_half else 64, 128) if roomy and newer else (64, 64, 128)
    return (128, 64, 65536) if roomy else (64, 64, 65536)


# -- the flash kernel


@kernel(_aten._scaled_dot_product_flash_attention.default)
def _flash(
    mode: DeviceMode, func: Any, query: Any, key: Any, value: Any, dropout: float = 0.0, *args: Any, **kw: Any
) -> Any:
    out = func(query, key, value, dropout, *args, **kw)
    for number in (0, 1):
        mode.memory.meet(out[number].untyped_storage())
    batch, heads, rows, size = query.shape
    splits = 1 if dropout else _splits(mode.card, batch * heads, rows, key.size(2), size)
    held = []
    if splits > 1:
        sums = splits * batch * heads * rows * 4
        held = [mode.memory.take(sums), mode.memory.take(sums * _head(size))]
    for number in (6, 7):
        mode.memory.meet(out[number].untyped_storage())
    for block in held[::-1]:
        mode.memory.give_back(block)
    return out


@kernel(_aten._scaled_dot_product_flash_attention_backward.default)
def _flash_backward(
    mode: DeviceMode, func: Any, grad: Any, query: Any, key: Any, value: Any, out: Any, *args: Any, **kw: Any
) -> Any:
    copied = [_contiguous(mode, grad), _contiguous(mode, out)]
    grads = func(grad, query, key, value, out, *args, **kw)
    for made in grads:
        mode.memory.meet(made.untyped_storage())
    batch, heads, rows, size = query.shape
    rounded = _up(rows, 128)
    held = [
        mode.memory.take(4 * batch * heads * rounded),
        mode.memory.take(4 * batch * heads * rounded * _head(size)),
    ]
    if key.size(1) != heads:
        each = batch * key.size(2) * heads * size * key.dtype.itemsize
        held += [mode.memory.take(each), mode.memory.take(each)]
    for block in held[::-1]:
        mode.memory.give_back(block)
    del copied
    return grads


def _splits(card: Card, blocks: int, rows: int, columns: int, size: int) -> int:
    """Over how many blocks of threads the keys of a query are split, so that all multiprocessors have work."""
    across = 256 if size <= 64 else 128 if size <= 128 else 64
    parts = -(-columns // across)
    blocks *= -(-rows // 64)
    places = card.multiprocessors * 2
    if blocks >= 0.8 * places:
        return 1
    worth: dict[int, float] = {}
    for splits in range(1, min(128, places, parts) + 1):
        if splits == 1 or -(-parts // splits) != -(-parts // (splits - 1)):
            waves = blocks * splits / places
            worth[splits] = waves / -(-blocks * splits // places)
    return next((splits for splits, of in worth.items() if of >= 0.85 * max(worth.values())), 1)


def _head(size: int) -> int:
    return _up(size, 32) if size <= 192 else 256


# -- both


def _contiguous(mode: DeviceMode, tensor: Any) -> Any:
    """The copy of a tensor of heads that a kernel makes where these do not lie beside each other; it may be None."""
    if tensor.transpose(1, 2).is_contiguous():
        return None
    return mode.empty(tensor.size(), tensor.dtype)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
