"""Kernels that sort indices, so that each place is added to by one thread."""

from __future__ import annotations

import math
from typing import Any

import torch

from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import kernel

_aten = torch.ops.aten
_FEW = 3072
"""Indices that an embedding's backward does without sorting."""
_ROWS = 10
"""Gradients that a thread of an embedding's backward adds up at most."""


@kernel(_aten.embedding_dense_backward.default)
def _embedding_backward(
    mode: DeviceMode, func: Any, grad: Any, indices: Any, rows: int, padding: int, by_frequency: bool
) -> Any:
    """As ``Embedding.cu`` and ``EmbeddingBackwardKernel.cu`` have it."""
    number, size = indices.numel(), indices.element_size()
    memory = mode.memory
    copied = None if grad.is_contiguous() else mode.empty(grad.size(), grad.dtype)
    if number <= _FEW and not by_frequency:
        out = func(grad, indices, rows, padding, by_frequency)
        memory.meet(out.untyped_storage())
        return out
    held = [memory.take(number * size) for _ in range(2)]
    order = memory.take(number * size)
    sort_pairs(mode, number, size, size)
    memory.give_back(order)
    if by_frequency:
        held.append(memory.take(number * size))
    out = func(grad, indices, rows, padding, by_frequency)
    memory.meet(out.untyped_storage())
    segments = min(number, rows)
    parts = number // _ROWS + segments
    held += [memory.take(number * size), memory.take(8)]
    held += [memory.take(segments * size), memory.take(segments * size), memory.take(8), memory.take(parts * size)]
    of = 4 if grad.dtype in (torch.float16, torch.bfloat16) else grad.element_size()
    held.append(memory.take(parts * grad.size(-1) * of))
    for block in held[::-1]:
        memory.give_back(block)
    del copied
    return out


@kernel(_aten.index_put_.default, _aten._index_put_impl_.default)
def _index_put(
    mode: DeviceMode, func: Any, tensor: Any, indices: Any, values: Any, accumulate: bool = False, *more: Any
) -> Any:
    """What is added up is sorted by where it goes, as ``index_put_with_sort_kernel`` of ``Indexing.cu`` has it."""
    given = [index for index in indices if index is not None and index.dtype not in (torch.bool, torch.uint8)]
    if (accumulate or torch.are_deterministic_algorithms_enabled()) and given and values.numel():
        where = torch.broadcast_shapes(*(index.shape for index in given))
        size = 8 * math.prod(where)
        memory = mode.memory
        linear = memory.take(size) if size else None
        memory.scratch(size)
        copied = (
            None
            if values.is_contiguous() and values.dim()
            else mode.empty(_written(tensor, indices, where), values.dtype)
        )
        held = [memory.take(size) for _ in range(3) if size]
        sort_pairs(mode, size // 8, 8, 8)
        for block in held[::-1]:
            memory.give_back(block)
        del copied
        if linear is not None:
            memory.give_back(linear)
    return func(tensor, indices, values, accumulate, *more)


@kernel(_aten.index_put.default)
def _index_put_into_a_copy(mode: DeviceMode, func: Any, tensor: Any, *args: Any) -> Any:
    """As :func:`_index_put`, into a copy."""
    return mode.run(_aten.index_put_.default, mode.run(_aten.clone.default, tensor), *args)


def _written(tensor: Any, indices: Any, where: Any) -> list[int]:
    """The shape of what is written: that of the indices, and of the dimensions without one."""
    return [*where, *(size for n, size in enumerate(tensor.shape) if n >= len(indices) or indices[n] is None)]


def sort_pairs(mode: DeviceMode, number: int, key: int, value: int) -> None:
    """What CUB's radix sort of pairs asks for: the keys and values once more, and counts of a few KiB."""
    if number:
        mode.memory.scratch(number * (key + value))
