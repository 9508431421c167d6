"""What a call of a module changes that is not its own: why it can't be run again as if nothing had happened.

A block that fills a key-value cache, writes into a dict that it is given, or counts its calls would do so again when a
checkpoint runs it again. Such a block is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint as _checkpoint

from memback.bridges.torch.recording.paths import in_file

__all__ = ["Before", "is_planned_call"]

_DEPTH, _MOST = 6, 2000
"""How deep objects are looked into, and for how many values."""
_VALUES = (int, float, bool, complex, str, bytes, type(None))
_OF_TORCH = frozenset(vars(nn.Module()))


def is_planned_call() -> bool:
    """Whether a call of a block is the plan's business.

    It is not where gradients are off, nor within backward or a checkpoint of the model's own.
    """
    if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
        return False
    return not in_file(_checkpoint.__file__)


class Before:
    """What a module and its arguments are like before a call."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._module = module
        self._given = [(value, _seen(value)) for value in (*args, *kwargs.values()) if _is_open(value)]
        self._own = {name: _seen(value) for name, value in _attributes(module)}

    def changed(self) -> str | None:
        """In words, what the call has changed; None where it is nothing that is seen."""
        for value, before in self._given:
            if not _same(before, _seen(value)):
                return f"changes the {type(value).__name__} that it is given"
        for name, value in _attributes(self._module):
            if not _same(self._own.get(name, []), _seen(value)):
                return f"changes its attribute {name}"
        return None


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """A module's own attributes that it may keep state in; a tensor that another one replaces is none."""
    for name, value in vars(module).items():
        if name not in _OF_TORCH and (_is_open(value) or type(value) in _VALUES):
            yield name, value


def _is_open(value: Any) -> bool:
    """Whether others can write into a value."""
    if isinstance(value, (torch.Tensor, nn.Module, type)) or type(value) in _VALUES or callable(value):
        return False
    return isinstance(value, (list, set, tuple, Mapping)) or hasattr(value, "__dict__")


def _seen(value: Any) -> list[Any]:
    return list(islice(_state(value, _DEPTH), _MOST))


def _state(value: Any, depth: int) -> Iterator[Any]:
    """What is in a value, in order; the parts themselves, so that none of them is gone when it is compared."""
    yield value
    if depth == 0 or not _is_open(value):
        return
    if isinstance(value, Mapping):
        parts: Any = [part for pair in list(value.items()) for part in pair]
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    else:
        parts = [part for pair in vars(value).items() for part in pair]
    for part in parts:
        yield from _state(part, depth - 1)


def _same(before: list[Any], after: list[Any]) -> bool:
    return len(before) == len(after) and all(
        a is b or (type(a) in _VALUES and type(a) is type(b) and a == b) for a, b in zip(before, after, strict=True)
    )
