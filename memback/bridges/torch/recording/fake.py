"""A module and its inputs without memory: PyTorch's own fake tensors in the place of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_with_path

from memback.bridges.torch.recording.dry_mode import DryMode
from memback.bridges.torch.recording.leftovers import put_back
from memback.bridges.torch.recording.storages import tensors, unwrapped
from memback.errors import MembackError

__all__ = ["DryRunError", "as_it_was", "exchanged_input", "fake_mode", "fake_of", "faked", "is_dry"]


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
    exchanged: bool | None = None,
    others: Sequence[Any] = (),
) -> Iterator[Any]:
    """In the block every op is run dry, as :mod:`memback.bridges.torch.recording.dry_mode` has it.

    Real tensors stay where they are. Those without memory are exchanged for fake ones, in place, and put back
    afterwards; but inputs of integers and truth values, of which the values are not known, for real ones: they are
    assumed to be 0, and 1 in truth values and in what is given by a name with ``mask`` in it.

    Args:
        module: whatever attribute of it or of a submodule changes is put back.
        inputs: arguments and those by name, nested as they may be.
        device: where tensors of the device ``meta`` are said to be; by default on the CPU.
        mode: in which fake tensors are made; by default :func:`fake_mode` of module and inputs.
        known: what stands for which tensor already, by the tensor's id.
        exchanged: whether real tensors are exchanged, too; by default if there are some without memory. Tied ones stay
            tied.
        others: whatever else the step runs, such as the loss, in which nothing may be left.

    Gives the inputs in the same nesting.
    """
    if mode is None:
        mode = fake_mode(module, inputs)
    if exchanged is None:
        exchanged = is_dry(module, inputs)
    memo = dict(known or {})

    def fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if isinstance(value, FakeTensor):
            value.fake_mode = mode  # copy.deepcopy has given it a copy of its own
            return value
        if id(value) not in memo:
            memo[id(value)] = fake_of(mode, value, device)
        return memo[id(value)]

    with as_it_was(module):
        if exchanged:
            for owner in module.modules():
                for members in (owner._parameters, owner._buffers):
                    members.update({name: fake(tensor) for name, tensor in members.items()})
            inputs = tree_map_with_path(partial(exchanged_input, fake), inputs)
        dry = DryMode(mode, module.parameters())
        with put_back(dry, module, inputs, *others), dry:
            yield inputs


@contextmanager
def as_it_was(module: torch.nn.Module) -> Iterator[None]:
    """Put back every attribute and hook of every submodule: some keep what they compute, which would have no memory."""
    before = [(vars(owner), dict(vars(owner)), [dict(m) for m in _members(owner)]) for owner in module.modules()]
    owners = list(module.modules())
    try:
        yield
    finally:
        for owner, (attributes, were, members) in zip(owners, before, strict=True):
            attributes.clear()
            attributes.update(were)
            for now, then in zip(_members(owner), members, strict=True):  # the very same ones as before
                now.clear()
                now.update(then)


def _members(owner: torch.nn.Module) -> tuple[dict[Any, Any], ...]:
    hooks = (held for name, held in vars(owner).items() if "_hooks" in name and isinstance(held, dict))
    return owner._parameters, owner._buffers, owner._modules, *hooks


def exchanged_input(fake: Callable[[Any], Any], path: tuple[Any, ...], value: Any) -> Any:
    """An input of a dry run: integers and truth values are real."""
    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex():
        return fake(value)
    if not isinstance(value, FakeTensor) and not value.is_meta:
        return value
    named = "mask" in str(path[1]).lower() if len(path) > 1 else False
    ones = value.dtype == torch.bool or named
    device = value.device if value.device.type == "cuda" and torch.cuda.is_available() else "cpu"
    return torch.full(value.shape, int(ones), dtype=value.dtype, device=device)


def fake_of(mode: FakeTensorMode, tensor: torch.Tensor, device: torch.device | None = None) -> Any:
    """A fake tensor that stands for another: for one on ``meta`` one of the device, by default the CPU."""
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
