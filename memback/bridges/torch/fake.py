"""A module and its inputs without memory: PyTorch's own fake tensors in the place of the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map

from memback.bridges.torch.storages import tensors, unwrapped

__all__ = ["fake_mode", "faked", "is_dry"]


def is_dry(*values: Any) -> bool:
    """Whether there are tensors without memory among ``values``, nested as they may be, and modules' own."""
    return any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in _all_tensors(values))


def fake_mode(*values: Any) -> FakeTensorMode:
    """The mode of the fake tensors among ``values``, or a new one."""
    found = next((tensor for tensor in _all_tensors(values) if isinstance(tensor, FakeTensor)), None)
    return FakeTensorMode(allow_non_fake_inputs=True) if found is None else found.fake_mode


@contextmanager
def faked(
    module: torch.nn.Module,
    inputs: Any,
    device: torch.device | None = None,
    mode: FakeTensorMode | None = None,
    known: Mapping[int, Any] | None = None,
) -> Iterator[Any]:
    """In the block parameters, buffers and inputs hold no memory, and neither does what any op gives.

    Args:
        module: its parameters and buffers are exchanged in place, and put back afterwards. Tied ones stay tied.
        inputs: tensors, nested as they may be.
        device: where tensors of the device ``meta`` are said to be; by default on the CPU.
        mode: in which they are made; by default :func:`fake_mode` of them.
        known: what stands for which tensor already, by the tensor's id.

    Gives the inputs in the same nesting, as fake tensors.
    """
    if mode is None:
        mode = fake_mode(module, inputs)
    memo = dict(known or {})

    def fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
            return value
        if id(value) not in memo:
            memo[id(value)] = _fake(mode, value, device)
        return memo[id(value)]

    exchanged: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for owner in module.modules():
            for members in (owner._parameters, owner._buffers):
                for name, tensor in members.items():
                    exchanged.append((members, name, tensor))
                    members[name] = fake(tensor)
        with mode:
            yield tree_map(fake, inputs)
    finally:
        for members, name, tensor in exchanged:
            members[name] = tensor


def _fake(mode: FakeTensorMode, tensor: torch.Tensor, device: torch.device | None) -> Any:
    if not tensor.is_meta:
        return mode.from_tensor(tensor, static_shapes=True)
    with mode:
        made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device or "cpu")
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad)


def _all_tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.nn.Module):
            owned = (*value.parameters(), *value.buffers())
            yield from (part for tensor in owned for part in unwrapped(tensor))
        else:
            yield from tensors(value)
