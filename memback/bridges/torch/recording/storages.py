"""The storages behind tensors: what a buffer is in PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

__all__ = ["distinct_bytes", "key", "storages", "tensors", "unwrapped"]


_PLAIN = (
    int,
    float,
    bool,
    complex,
    str,
    bytes,
    type(None),
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples, mappings, data classes and whatever else PyTorch knows to look into."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    kind = type(value)
    if kind is tuple or kind is list or kind is dict:  # which PyTorch looks into likewise, but slowly
        for one in value.values() if kind is dict else value:
            if isinstance(one, torch.Tensor):
                yield one
            elif type(one) not in _PLAIN:
                yield from tensors(one)
        return
    for leaf in tree_leaves(value):
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif type(leaf) not in _PLAIN:
            yield from tensors(_parts(leaf))


def _parts(value: Any) -> list[Any]:
    """What is in a container that PyTorch does not know."""
    if isinstance(value, Mapping):
        return list(value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return []


def storages(tensor: torch.Tensor) -> list[Any]:
    """The untyped storages that a tensor looks into: one, but for sparse tensors and those that wrap others.

    None of what is known to be zero: PyTorch makes that without memory, though its storage shows a size.
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if tensor._is_zerotensor():
        return []
    if tensor.layout is torch.strided:
        parts = _wrapped(tensor)
        return [tensor.untyped_storage()] if parts is None else [s for part in parts for s in storages(part)]
    if tensor.layout is torch.sparse_coo:
        return [s for part in (tensor._indices(), tensor._values()) for s in storages(part)]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [s for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()) for s in storages(part)]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [s for part in (tensor.ccol_indices(), tensor.row_indices(), tensor.values()) for s in storages(part)]
    return []  # of another library's layout, which shows no storage


def _wrapped(tensor: torch.Tensor) -> list[torch.Tensor] | None:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return None
    parts = (getattr(tensor, name) for name in flatten()[0])
    return [part for part in parts if isinstance(part, torch.Tensor)]  # a DTensor names its mesh, too


def unwrapped(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors in one that wraps others, such as a DTensor's local part; else itself."""
    parts = _wrapped(tensor)
    if parts is None:
        yield tensor
    else:
        for part in parts:
            yield from unwrapped(part)


def key(storage: Any) -> int:
    """What tells a living storage from every other."""
    return int(storage._cdata)


def distinct_bytes(values: Iterable[Any]) -> int:
    """Bytes of the distinct storages behind tensors in ``values``, nested as they may be."""
    return sum({key(s): s.nbytes() for t in tensors(list(values)) for s in storages(t)}.values())
