"""Who stands in for a function of NumPy's where an array without memory takes part in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

__all__ = ["FUNCTIONS", "OPERATIONS", "implements", "operation"]

Handler: TypeAlias = Callable[..., Any]

FUNCTIONS: dict[Callable[..., Any], Handler] = {}
"""By NumPy's function."""

OPERATIONS: dict[str, Handler] = {}
"""What is no function by its name: ``getitem``, ``setitem``, and universal functions by what they do."""


def implements(*functions: Callable[..., Any]) -> Callable[[Handler], Handler]:
    """Register a handler of NumPy's functions."""

    def register(handler: Handler) -> Handler:
        for function in functions:
            FUNCTIONS[function] = handler
        return handler

    return register


def operation(name: str) -> Callable[[Handler], Handler]:
    """Register the handler of an operation."""

    def register(handler: Handler) -> Handler:
        OPERATIONS[name] = handler
        return handler

    return register
