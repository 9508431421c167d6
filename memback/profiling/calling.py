"""The step that a module and its inputs, or a ``step=``, stand for; and the argument order of earlier versions."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from memback.errors import UsageError, warn_deprecated
from memback.nn.module import Module

if TYPE_CHECKING:
    from memback.engine.tensor import Tensor

__all__ = ["module_first", "step_of"]

P = ParamSpec("P")
R = TypeVar("R")

_OLD_ORDER = ("module", "modes", "policy")
"""What followed the step in versions that took it first."""


def step_of(module: Module | None, inputs: tuple[Any, ...], step: Callable[[], Tensor] | None) -> Callable[[], Tensor]:
    """``step``; or where there is none, the sum of what ``module`` makes of ``inputs``.

    Raises:
        UsageError: neither a step nor a module is given, or a function among the inputs.
    """
    for value in inputs:
        if callable(value):
            raise UsageError(
                f"an input of the module is a {type(value).__name__}: give what runs a step by name, step="
            )
    if step is not None:
        if inputs:
            warn_deprecated(
                "inputs beside a step are not used, because the step calls the module on its own: leave them out"
            )
        return step
    if module is None:
        raise UsageError("there is nothing to run: give a module and its inputs, or a step= that returns the loss")

    def total() -> Tensor:
        from memback import ops

        loss: Tensor = ops.sum(module(*inputs))
        return loss

    total.__name__ = "step"
    return total


def module_first(function: Callable[P, R]) -> Callable[P, R]:
    """Accept the argument order of earlier versions, step first and module second, with a warning."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if args and callable(args[0]) and not isinstance(args[0], Module):
            warn_deprecated("the module comes first now, the step by name: profile(module, step=step)")
            return function(**_by_name(args, kwargs))  # type: ignore[call-arg]
        return function(*args, **kwargs)

    return call


def _by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    step, *rest = args
    if len(rest) > len(_OLD_ORDER):
        raise UsageError(f"{len(args)} arguments by place: give all but the module and its inputs by name")
    given = {"step": step, **dict(zip(_OLD_ORDER, rest, strict=False))}
    twice = sorted(given.keys() & kwargs.keys())
    if twice:
        raise UsageError(f"{', '.join(twice)} given twice, by place and by name: write profile(module, step=step)")
    return {**given, **kwargs}
