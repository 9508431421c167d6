"""Scratch memory of reductions: where a sum is split over blocks of threads, each leaves what it has in global memory.

As ``ATen/native/cuda/Reduce.cuh`` chooses blocks and grids (``setReduceConfig``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import kernel

_aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)
_THREADS = 512
_MOST_VALUES, _LEAST_VALUES = 256, 16
"""How many values a thread is given at most, where there are enough threads, and at least."""


@dataclass(frozen=True)
class _Dims:
    """Sizes and strides (in numbers) of what is reduced, and of what is not, the fastest first."""

    reduced: tuple[tuple[int, int], ...]
    kept: tuple[tuple[int, int], ...]
    offset: int


def scratch_of(card: Card, tensor: torch.Tensor, dims: Iterable[int], accumulated: int, vector: int = 4) -> list[int]:
    """Bytes that a reduction of a tensor over dims asks for: what blocks leave, and who is done; empty for none.

    Args:
        card: what it runs on.
        tensor: what is reduced.
        dims: those that are reduced.
        accumulated: bytes of what a thread accumulates in.
        vector: how many numbers are read at once.
    """
    found = _merged(tensor, set(dims))
    inputs, outputs = _product(found.reduced), _product(found.kept)
    along = not found.kept or (bool(found.reduced) and found.reduced[0][1] < found.kept[0][1])
    first, second = (inputs, outputs) if along else (outputs, inputs)
    side = found.reduced if along else found.kept
    outputs_at_once = 1
    if side and side[0][1] == 1:
        if along and first >= 128 and len(found.reduced) == 1:
            first //= vector
        elif not along:
            outputs_at_once = _outputs_at_once(found)
            first //= outputs_at_once
    most = _THREADS // outputs_at_once
    width, height = _block(first, second, most)
    step_in, step_out = (width, 1) if along else (1, width)
    if -(-inputs // step_in) < min(height * 16, _MOST_VALUES):
        return []
    step_in *= height
    values = -(-inputs // step_in)
    grid = -(-(outputs // outputs_at_once) // step_out)
    wanted = card.multiprocessors * (card.threads // (width * height))
    if values < _MOST_VALUES or grid > wanted:
        return []
    blocks = max(-(-values // _MOST_VALUES), min(-(-wanted // grid), -(-values // _LEAST_VALUES)))
    if blocks <= 1:
        return []
    return [accumulated * outputs * blocks * (1 if along else width * outputs_at_once), 4 * grid]


def _merged(tensor: torch.Tensor, dims: set[int]) -> _Dims:
    """Neighbours that lie one after the other in memory are one dimension."""
    groups = []
    for inside in (True, False):
        chosen = [(tensor.size(d), tensor.stride(d)) for d in range(tensor.dim()) if (d in dims) is inside]
        merged: list[tuple[int, int]] = []
        for size, stride in sorted((one for one in chosen[::-1] if one[0] != 1), key=lambda one: one[1]):
            if merged and merged[-1][0] * merged[-1][1] == stride:
                merged[-1] = (merged[-1][0] * size, merged[-1][1])
            else:
                merged.append((size, stride))
        groups.append(tuple(merged))
    return _Dims(groups[0], groups[1], tensor.storage_offset())


def _outputs_at_once(found: _Dims) -> int:
    vector = 4
    for number in (found.offset, found.kept[0][0], *(stride for _, stride in (*found.reduced, *found.kept[1:]))):
        while number % vector:
            vector //= 2
    return vector


def _block(first: int, second: int, most: int) -> tuple[int, int]:
    wide, high = _power_below(first, most), _power_below(second, most)
    height = min(high, most // min(wide, 32))
    return min(wide, most // height), height


def _power_below(number: int, most: int) -> int:
    return most if number >= most else 1 << (max(number, 1).bit_length() - 1)


def _product(dims: Iterable[tuple[int, int]]) -> int:
    total = 1
    for size, _ in dims:
        total *= size
    return total


def _dims_of(tensor: Any, dim: Any) -> list[int]:
    if dim is None or dim == []:
        return list(range(tensor.dim()))
    return [one % max(tensor.dim(), 1) for one in ([dim] if isinstance(dim, int) else dim)]


def _reduce(mode: DeviceMode, tensor: Any, dim: Any, accumulated: int, vector: int = 4) -> None:
    if tensor.numel():
        mode.memory.scratch(*scratch_of(mode.card, tensor, _dims_of(tensor, dim), accumulated, vector))


def accumulated_bytes(dtype: torch.dtype) -> int:
    """Bytes that numbers of a type are added up in."""
    return 4 if dtype in _HALVES else dtype.itemsize


@kernel(_aten.sum.default, _aten.sum.dim_IntList, _aten.mean.default, _aten.mean.dim, _aten.prod.default)
def _sum(mode: DeviceMode, func: Any, tensor: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """A sum in another type than that of the numbers is one of a copy, but for halves that are added up in float32."""
    named = {} if dtype is None else {"dtype": dtype}
    out = (
        func(tensor, dim, keepdim, **named)
        if any(a.name == "dim" for a in func._schema.arguments)
        else func(tensor, **named)
    )
    mode.memory.meet(out.untyped_storage())
    if out.dtype != tensor.dtype and not (tensor.dtype in _HALVES and out.dtype == torch.float32):
        tensor = mode.empty(tensor.size(), out.dtype)
    half_vector = 8 if tensor.dtype.itemsize == 2 else 4
    _reduce(mode, tensor, dim, accumulated_bytes(tensor.dtype), half_vector)
    return out


@kernel(_aten.linalg_vector_norm.default)
def _norm(mode: DeviceMode, func: Any, tensor: Any, order: Any = 2, dim: Any = None, *more: Any, **named: Any) -> Any:
    out = func(tensor, order, dim, *more, **named)
    mode.memory.meet(out.untyped_storage())
    _reduce(mode, tensor, dim, accumulated_bytes(tensor.dtype))
    return out


@kernel(_aten.var.correction, _aten.std.correction, _aten.var_mean.correction)
def _var(mode: DeviceMode, func: Any, tensor: Any, dim: Any = None, **named: Any) -> Any:
    out = func(tensor, dim, **named)
    for one in out if isinstance(out, tuple) else (out,):
        mode.memory.meet(one.untyped_storage())
    _reduce(mode, tensor, dim, 16 if tensor.dtype != torch.float64 else 32)
    return out


@kernel(_aten.amax.default, _aten.amin.default, _aten.any.default, _aten.any.dim, _aten.all.default, _aten.all.dim)
def _extreme(mode: DeviceMode, func: Any, tensor: Any, dim: Any = None, *more: Any, **named: Any) -> Any:
    out = func(tensor, *(() if dim is None else (dim,)), *more, **named)
    mode.memory.meet(out.untyped_storage())
    _reduce(mode, tensor, dim, tensor.dtype.itemsize)
    return out


@kernel(_aten.cumsum.default)
def _cumsum(mode: DeviceMode, func: Any, tensor: Any, dim: int, *, dtype: Any = None) -> Any:
    """Of numbers of another type than the sums' a copy is added up."""
    out = func(tensor, dim, dtype=dtype)
    mode.memory.meet(out.untyped_storage())
    if out.dtype != tensor.dtype:
        mode.memory.scratch(out.untyped_storage().nbytes())
    return out
