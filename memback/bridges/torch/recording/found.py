"""What a training step works with, found from its function and arguments: modules, optimisers, and other tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from memback.bridges.torch.recording.calls import check_all_visible
from memback.bridges.torch.recording.reach import reached
from memback.bridges.torch.recording.sharding import strategy_of
from memback.errors import UsageError

__all__ = ["Found", "found_by"]

_MOST = 1_000_000
"""Objects that are looked through."""


class Found:
    """What a step works with.

    Attributes:
        root: the module, or one that has all of them as members, by what they are called.
        optimizers: PyTorch's.
        scalers: of gradients.
        others: tensors that belong to none of these.
    """

    def __init__(self, modules: Mapping[str, nn.Module], optimizers: list[Any], scalers: list[Any]) -> None:
        self.root = next(iter(modules.values())) if len(modules) == 1 else _together(modules)
        self.optimizers, self.scalers = optimizers, scalers
        self.others: list[torch.Tensor] = []

    def parameters(self) -> list[tuple[str, torch.Tensor]]:
        """Every parameter by name; one that an optimiser has and no module, as a master copy, by its number."""
        named = list(self.root.named_parameters())
        met = {id(tensor) for _, tensor in named}
        more = [tensor for one in self.optimizers for group in one.param_groups for tensor in group["params"]]
        alone = {id(tensor): tensor for tensor in more if id(tensor) not in met}
        return named + [(f"of the optimiser, {number}", tensor) for number, tensor in enumerate(alone.values())]

    def state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """The optimisers' tensors: of which parameter, what it is called there, and itself."""
        names = {id(tensor): name for name, tensor in self.parameters()}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for what, tensor in _tensors(state):
                    yield names.get(id(parameter), "?"), what, tensor

    def arguments(self) -> list[tuple[str, torch.Tensor]]:
        """Everything that is there before the step, by name."""
        named = [(f"parameter {name}", tensor) for name, tensor in self.parameters()]
        named += [(f"buffer {name}", tensor) for name, tensor in self.root.named_buffers()]
        named += [(f"optimiser state {what} of {name}", tensor) for name, what, tensor in self.state()]
        return named + [("input", tensor) for tensor in self.others]


def _tensors(state: Any, what: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(state, torch.Tensor):
        yield what or "state", state
    elif isinstance(state, Mapping):
        for name, value in state.items():
            yield from _tensors(value, what or str(name))
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors(value, what)


def found_by(step: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Found:
    """Look for what a step works with: in its arguments, its closure, and whatever these lead on to.

    Raises:
        UsageError: it trains nothing that can be found, or what it trains can't be watched.
    """
    values = list(reached((step, args, kwargs), _MOST))
    modules = [value for value in values if isinstance(value, nn.Module)]
    within = {id(part) for module in modules for part in module.modules() if part is not module}
    outermost = [module for module in modules if id(module) not in within]
    optimizers = [value for value in values if isinstance(value, torch.optim.Optimizer)]
    scalers = [value for value in values if isinstance(value, torch.amp.GradScaler)]
    found = Found(_named(outermost, step, args, kwargs), optimizers, scalers)
    _check(found, outermost)
    known = {id(tensor) for _, tensor in found.arguments()}
    found.others = [v for v in values if isinstance(v, torch.Tensor) and id(v) not in known]
    if not found.parameters() and not any(tensor.requires_grad for tensor in found.others):
        raise UsageError(
            "the step trains no module, optimiser or tensor that can be found: have it take them as arguments, or refer"
            " to them by name"
        )
    return found


def _check(found: Found, modules: list[nn.Module]) -> None:
    for module in modules:
        check_all_visible(module)
        if strategy_of(module) is not None:
            raise UsageError("a step is predicted for one process: take the module without DDP or FSDP")
    lazy = [name for name, tensor in found.root.named_parameters() if nn.parameter.is_lazy(tensor)]
    if lazy:
        raise UsageError(f"parameter {lazy[0]} has no shape yet: call the module once before it is profiled")


def _named(
    modules: list[nn.Module], step: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, nn.Module]:
    """Modules by what the step calls them, or else by their class."""
    names = {id(value): name for name, value in _variables(step, args, kwargs)}
    named: dict[str, nn.Module] = {}
    for module in modules:
        name = names.get(id(module), type(module).__name__.lower()).replace(".", "_")
        while name in named:
            name += "_"
        named[name] = module
    return named


def _variables(step: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    function = inspect.unwrap(getattr(step, "__func__", step))
    code = getattr(function, "__code__", None)
    if code is not None:
        names = function.__globals__
        yield from ((name, names[name]) for name in code.co_names if name in names)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            yield from _contents(name, cell)
    yield from getattr(getattr(step, "__self__", None), "__dict__", {}).items()
    try:
        yield from inspect.signature(step).bind(*args, **kwargs).arguments.items()
    except (TypeError, ValueError):
        return


def _contents(name: str, cell: Any) -> Iterator[tuple[str, Any]]:
    """What a closure's cell holds, if it holds anything yet."""
    try:
        yield name, cell.cell_contents
    except ValueError:
        return


def _together(modules: Mapping[str, nn.Module]) -> nn.Module:
    root = nn.Module()
    for name, module in modules.items():
        root.add_module(name if not hasattr(root, name) else f"{name}_", module)
    return root
