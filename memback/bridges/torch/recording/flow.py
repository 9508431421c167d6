"""How a block's arguments come from the block before it, as plain data: to be checked, kept in a file, and rebuilt.

A description is a nested list that begins with what it is:

    ["value", v]            a constant: None, a truth value, a number or text
    ["output", n]           the n-th tensor that the block before gives
    ["outer", n]            the n-th of the tensors that the whole run of linked blocks is given
    ["tuple" | "list", …]   of descriptions
    ["dict", {name: …}]     of descriptions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from memback.errors import UsageError

__all__ = ["Flow", "NotPlainError", "build", "checked", "describe", "differs"]

Flow: TypeAlias = list[Any]

_CONSTANTS = (bool, int, float, str)


class NotPlainError(Exception):
    """A value can't be described."""


def describe(
    args: Sequence[Any], kwargs: Mapping[str, Any], outputs: Mapping[int, int], outer: Mapping[int, int]
) -> Flow:
    """A call's arguments, where ``outputs`` and ``outer`` number the tensors that are known, by their ``id``.

    Raises:
        NotPlainError: there is something else among them.
    """

    def of(value: Any) -> Flow:
        if isinstance(value, torch.Tensor):
            if id(value) in outputs:
                return ["output", outputs[id(value)]]
            if id(value) in outer:
                return ["outer", outer[id(value)]]
            raise NotPlainError
        if value is None or type(value) in _CONSTANTS:
            return ["value", value]
        if type(value) in (tuple, list):
            return [type(value).__name__, *map(of, value)]
        if type(value) is dict and all(isinstance(name, str) for name in value):
            return ["dict", {name: of(part) for name, part in value.items()}]
        raise NotPlainError

    return ["tuple", of(tuple(args)), of(dict(kwargs))]


def build(flow: Flow, outputs: Sequence[Any], outer: Mapping[int, Any]) -> Any:
    """The value that a description stands for."""
    match flow:
        case ["value", value]:
            return value
        case ["output", number]:
            return outputs[number]
        case ["outer", number]:
            return outer[number]
        case ["dict", parts]:
            return {name: build(part, outputs, outer) for name, part in parts.items()}
        case [kind, *parts]:
            values = (build(part, outputs, outer) for part in parts)
            return tuple(values) if kind == "tuple" else list(values)
    raise AssertionError(flow)


def differs(flow: Flow, value: Any, outputs: Sequence[Any] | None, outer: Mapping[int, Any]) -> str | None:
    """What of a value is not as described, or None. Without ``outputs`` any tensor may stand for them."""
    match flow:
        case ["value", constant]:
            return None if type(value) is type(constant) and value == constant else f"{value!r:.60}, not {constant!r}"
        case ["output", _] if outputs is None:
            return None if isinstance(value, torch.Tensor) else f"{value!r:.60}, not a tensor"
        case ["output", number]:
            assert outputs is not None
            return None if value is outputs[number] else "something else than what the block before gives"
        case ["outer", number]:
            return None if value is outer[number] else "another tensor than the first block of its segment"
        case ["dict", parts]:
            if type(value) is not dict or list(value) != list(parts):
                return f"{value!r:.60} instead of values for {', '.join(parts) or 'nothing'}"
            reasons = [differs(part, value[name], outputs, outer) for name, part in parts.items()]
        case [kind, *parts]:
            if type(value).__name__ != kind or len(value) != len(parts):
                return f"{value!r:.60} instead of {len(parts)} values"
            reasons = [differs(part, v, outputs, outer) for part, v in zip(parts, value, strict=True)]
        case _:
            raise AssertionError(flow)
    return next((reason for reason in reasons if reason is not None), None)


def checked(data: Any, where: str) -> Flow:
    """A description that was read from a file.

    Raises:
        UsageError: it is none.
    """
    match data:
        case ["value", None | bool() | int() | float() | str()]:
            return data
        case ["output" | "outer", int(number)] if number >= 0 and not isinstance(number, bool):
            return data
        case ["tuple" | "list", *parts]:
            return [data[0], *(checked(part, where) for part in parts)]
        case ["dict", dict(parts)]:
            return ["dict", {name: checked(part, where) for name, part in parts.items()}]
    raise UsageError(f"{where} has arguments that are described by {data!r:.80}, which means nothing")
