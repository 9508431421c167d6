"""Checksums of what backward will need, so that a change that the tape was not told of is found."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from memback.engine.arrays import Array, DryArray

__all__ = ["Seal"]


class Seal:
    """Checksums of arrays by name; no array is kept alive."""

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
    """Checksum of an array's bytes. An array without memory has none; it counts the memory of the check."""
    import zlib

    if isinstance(array, DryArray):
        if not array.contiguous:
            array.copy()
        return 0
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
