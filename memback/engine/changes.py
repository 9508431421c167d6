"""Changes in place that the tape was told of."""

from __future__ import annotations

import weakref
from typing import Any

from memback.engine.arrays import Array, forgotten, root

__all__ = ["Changes", "changes"]


class Changes:
    """A logical clock that ticks at every change, and when each changed buffer changed last."""

    def __init__(self) -> None:
        self.clock = 0
        self._last: dict[int, tuple[weakref.ref[Any], int, str]] = {}

    def note(self, array: Array, what: str) -> None:
        """The array was changed, by ``what``."""
        self.clock += 1
        buffer = root(array)
        key = id(buffer)
        self._last[key] = (weakref.ref(buffer, forgotten(self._last, key)), self.clock, what)

    def since(self, array: Array, time: int) -> str | None:
        """What changed the array's buffer after ``time``, if anything did."""
        entry = self._last.get(id(root(array)))
        return entry[2] if entry is not None and entry[1] > time else None


changes = Changes()
