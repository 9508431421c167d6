"""A module and its inputs without memory: PyTorch's own fake tensors in the place of the real ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from memback.bridges.torch.dtypes import refuse_types
from memback.bridges.torch.storages import tensors, unwrapped
from memback.errors import MembackError

__all__ = ["DryRunError", "fake_mode", "faked", "is_dry"]


class DryRunError(MembackError):
    """A step can't be run on tensors without memory."""


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
        if not isinstance(value, torch.Tensor):
            return value
        if isinstance(value, FakeTensor):
            value.fake_mode = mode  # copy.deepcopy has given it a copy of its own
            return value
        if id(value) not in memo:
            memo[id(value)] = _fake(mode, value, device)
        return memo[id(value)]

    with _as_it_was(module):
        for owner in module.modules():
            for members in (owner._parameters, owner._buffers):
                members.update({name: fake(tensor) for name, tensor in members.items()})
        with mode, _Mixed():
            yield tree_map(fake, inputs)


class _Mixed(TorchDispatchMode):
    """Gives what normalisations in mixed precision make the types that the CPU's kernels give it.

    These keep statistics in the type of the weights, and group normalisation gives a gradient in the type of the input;
    PyTorch's own fake ones have it the other way round.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        refuse_types(func, args, kwargs)
        if func in _WEIGHTS and args[0].device.type == "cpu":
            weight = next((a for a in args[_WEIGHTS[func] :] if isinstance(a, torch.Tensor)), args[0])
            return (out[0], *(_as(weight.dtype, statistic) for statistic in out[1:]))
        if func is torch.ops.aten.native_group_norm_backward.default and args[0].device.type == "cpu":
            return (_as(args[1].dtype, out[0]), *out[1:])
        return out


def _as(dtype: torch.dtype, tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else torch.empty_like(tensor, dtype=dtype)


_WEIGHTS = {
    torch.ops.aten.native_batch_norm.default: 1,
    torch.ops.aten.native_group_norm.default: 1,
    torch.ops.aten.native_layer_norm.default: 2,
}
"""Normalisations, and from which argument on their weights, biases and running statistics are."""


@contextmanager
def _as_it_was(module: torch.nn.Module) -> Iterator[None]:
    """Put back every attribute of every submodule: some keep what they compute, which would have no memory."""
    before = [(vars(owner), dict(vars(owner)), [dict(m) for m in _members(owner)]) for owner in module.modules()]
    owners = list(module.modules())
    try:
        yield
    finally:
        for owner, (attributes, were, members) in zip(owners, before, strict=True):
            attributes.clear()
            attributes.update(were)
            for now, then in zip(_members(owner), members, strict=True):
                now.clear()
                now.update(then)


def _members(owner: torch.nn.Module) -> tuple[dict[str, Any], ...]:
    return owner._parameters, owner._buffers, owner._modules


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
