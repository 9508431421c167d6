"""What goes wrong on a tape."""

from __future__ import annotations

from memback.errors import MembackError

__all__ = ["AnomalyError", "TapeError"]


class TapeError(MembackError):
    """Backward can't be run as asked."""


class AnomalyError(MembackError):
    """A NaN or infinity appeared while anomaly checking was on."""
