"""What a report calls the loss that a step was run with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType
from typing import Any

import torch

from memback.bridges.torch.recording.step import Loss, sum_of_outputs
from memback.bridges.torch.recording.storages import tensors

__all__ = ["with_name"]


def with_name(loss: Loss) -> tuple[Loss, Callable[[], str]]:
    """A loss as a step may take it, and what gives its name after that: of the default one it is known only then."""
    if loss is not sum_of_outputs:
        return loss, lambda: _name(loss)
    names = [_name(loss)]

    def told(output: Any) -> torch.Tensor:
        value = loss(output)
        names[0] = _taken(output, value)
        return value

    return told, lambda: names[0]


def _taken(output: Any, loss: torch.Tensor) -> str:
    """What :func:`sum_of_outputs` has taken."""
    if loss is getattr(output, "loss", None):
        return "the output's own loss"
    one = any(tensor is loss for tensor in tensors(output))
    return "the number that the module gives" if one else "the sum of what the module gives"


def _name(loss: Callable[..., Any]) -> str:
    while isinstance(loss, partial):
        loss = loss.func
    if isinstance(loss, torch.nn.Module):
        return type(loss).__name__
    builtin = isinstance(loss, BuiltinFunctionType)
    name = getattr(loss, "__name__" if builtin else "__qualname__", type(loss).__name__)
    module, code = getattr(loss, "__module__", None), getattr(loss, "__code__", None)
    if "<" in name and code is not None:  # a lambda's, or one within a function: its line says more than its name
        return f"{name.rpartition('.')[2]} ({code.co_filename.rpartition('/')[2]}:{code.co_firstlineno})"
    return name if module in (None, "__main__", "builtins") else f"{module}.{name}"
