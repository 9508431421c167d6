"""What a step can get at: the objects that lead on from a function, its arguments, and what these hold.

Looked into are containers, attributes, closures, defaults, hooks of tensors, and the globals that a function's code
names; not what iterates, such as a loader of data, and no object of a library's own machinery.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch

__all__ = ["ATOMS", "CACHE", "CONTAINERS", "filled", "reached", "within"]

ATOMS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, types.ModuleType)
CONTAINERS = (dict, list, set, deque)
CACHE: Any = type(lru_cache(lambda: None))

_APART = ("memback.", "torch.distributed.")
"""How modules begin whose objects are put back by who exchanges them (:mod:`.standing_in`)."""
_KEPT = (torch.Tensor, torch.nn.Module, torch.optim.Optimizer)
"""What of PyTorch's a global may be that a step works with."""


def reached(roots: Iterable[Any], most: int) -> Iterator[Any]:
    """Everything that can be got at from ``roots``, each once, the nearest first, until ``most`` have been met."""
    met: set[int] = set()
    queue: deque[Any] = deque(roots)
    while queue and len(met) < most:
        value = queue.popleft()
        if isinstance(value, ATOMS) or id(value) in met:
            continue
        met.add(id(value))
        yield value
        queue.extend(held for held in within(value) if not isinstance(held, ATOMS))


def within(value: Any) -> Iterable[Any]:
    """What can be got at from a value in one step."""
    if isinstance(value, dict):
        return [*(key for key in dict.keys(value) if isinstance(key, torch.Tensor)), *dict.values(value)]
    if isinstance(value, (*CONTAINERS, tuple, frozenset)):
        return list(value)
    if isinstance(value, torch.Tensor):
        return (getattr(value, "_post_accumulate_grad_hooks", None), value._backward_hooks)
    if isinstance(value, types.FunctionType):
        return _of_function(value)
    if isinstance(value, types.MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, CACHE):
        return ()
    if isinstance(value, type):
        return _of_class(value)
    return _of_object(value)


def _of_object(value: Any) -> Iterable[Any]:
    attributes = getattr(value, "__dict__", None)
    is_module = isinstance(value, torch.nn.Module)
    if not isinstance(attributes, dict) or (type(value).__module__.startswith(_APART) and not is_module):
        return ()
    classes = type(value).__mro__ if is_module else ()
    hooked = value.parameters(recurse=False) if is_module else ()
    return [attributes, *classes, *hooked]


def _of_function(function: types.FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if filled(cell)]
    return [*cells, *(function.__defaults__ or ()), *_named(function, function.__code__)]


def _of_class(cls: type) -> list[Any]:
    """Its own attributes; PyTorch's classes keep nothing."""
    if cls.__module__.partition(".")[0] in ("torch", "builtins", "abc"):
        return []
    return [value for value in vars(cls).values() if isinstance(value, (*CONTAINERS, types.FunctionType))]


def _named(function: types.FunctionType, code: types.CodeType) -> Iterator[Any]:
    """The globals that a function's code names, and that can keep something; also in the functions that it defines."""
    for name in code.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, (*CONTAINERS, types.FunctionType, CACHE, *_KEPT)):
            yield value
        elif type(value).__module__.partition(".")[0] in ("torch", "builtins", "typing"):
            continue
        elif not isinstance(value, (type, types.ModuleType)) and hasattr(value, "__dict__"):
            yield value
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _named(function, constant)


def filled(cell: Any) -> bool:
    """Whether a closure's cell has been given something."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
