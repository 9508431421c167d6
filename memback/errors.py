"""What memback raises: messages that name the cause, the value and the remedy."""

from __future__ import annotations

__all__ = ["MembackError", "OutOfMemoryError", "UsageError"]


class MembackError(Exception):
    """It failed; the command line ends with exit code 1."""


class OutOfMemoryError(MembackError, MemoryError):
    """The system has no more memory to give; ``bytes`` is what was asked for at last, where that is known."""

    def __init__(self, message: str, bytes: int | None = None) -> None:
        super().__init__(message)
        self.bytes = bytes


class UsageError(MembackError):
    """The request was wrong; the command line ends with exit code 2."""
