"""Checksums of what backward will need, so that a change that nobody told of is found."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from memback.engine.arrays import Array, DryArray

__all__ = ["Seal"]


class Seal:
    """What arrays held when it was made, by their names; it keeps none of them alive."""

    def __init__(self, arrays: Iterable[tuple[str, Array]]) -> None:
        self._sums = [(name, weakref.ref(array), _checksum(array)) for name, array in arrays]

    def broken(self) -> str | None:
        """The name of an array that holds something else now, if there is one."""
        for name, ref, before in self._sums:
            array = ref()
            if array is not None and _checksum(array) != before:
                return name
        return None


def _checksum(array: Any) -> int:
    """Of the elements' bytes. What has no values has none, by way of the memory that a look takes."""
    import zlib

    if isinstance(array, DryArray):
        if not array.contiguous:
            array.copy()
        return 0
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
