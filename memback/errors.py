"""What memback raises: messages that name the cause, the value and the remedy."""

from __future__ import annotations

__all__ = ["MembackError", "UsageError"]


class MembackError(Exception):
    """It failed; the command line ends with exit code 1."""


class UsageError(MembackError):
    """The request was wrong; the command line ends with exit code 2."""
