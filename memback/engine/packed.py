"""Saved values as hooks have packed them."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any

from memback.engine.arrays import Array

__all__ = ["Packed", "PackedValue", "is_packed", "mapped", "unpacked"]


class PackedValue(tuple[Any, ...]):
    """A packed array: (the hooks that packed it, what they gave for it)."""

    __slots__ = ()

    def unpack(self) -> Array:
        """The array again."""
        hooks, packed = self
        array: Array = hooks.unpack(packed)
        return array


class Packed(tuple[Any, ...]):
    """What a call keeps, where some of it is packed."""

    __slots__ = ()

    def unpack(self) -> tuple[Any, ...]:
        """The same with arrays."""
        return tuple(map(unpacked, self))


def is_packed(value: Any) -> bool:
    """Whether a saved value is packed, or a tuple or list with packed ones in it."""
    return isinstance(value, PackedValue) or (isinstance(value, (tuple, list)) and any(map(is_packed, value)))


def unpacked(value: Any) -> Any:
    """A saved value, which may be packed or a tuple or list with packed ones in it, with arrays."""
    if isinstance(value, PackedValue):
        return value.unpack()
    return mapped(value, unpacked)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A tuple or list with changed items; itself where none has changed."""
    if type(value) not in (tuple, list):
        return value
    items = [change(item) for item in value]
    return value if all(map(is_, items, value)) else type(value)(items)
