"""What memback raises: messages that name the cause, the value and the remedy."""

from __future__ import annotations

__all__ = ["MembackError", "OutOfMemoryError", "UsageError", "shorten"]


def shorten(value: object, most: int = 200) -> str:
    """``value`` as text of at most ``most`` characters: of a longer one the beginning, and how long it is.

    Messages name values that may come from anywhere, of any length.
    """
    text = str(value)
    return text if len(text) <= most else f"{text[: most // 2]}… ({len(text):,} characters)"


class MembackError(Exception):
    """It failed; the command line ends with exit code 1."""


class OutOfMemoryError(MembackError, MemoryError):
    """The system has no more memory to give; ``bytes`` is what was asked for at last, where that is known."""

    def __init__(self, message: str, bytes: int | None = None) -> None:
        super().__init__(message)
        self.bytes = bytes


class UsageError(MembackError):
    """The request was wrong; the command line ends with exit code 2."""
