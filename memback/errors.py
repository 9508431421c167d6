"""What memback raises and warns of: messages that name the cause, the value and the remedy."""

from __future__ import annotations

import os
import sys
import warnings
from types import FrameType

__all__ = ["MembackError", "OutOfMemoryError", "UsageError", "shorten", "warn_deprecated"]

_PACKAGE = os.path.join(os.path.dirname(__file__), "")


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


def warn_deprecated(message: str) -> None:
    """Give a DeprecationWarning at the innermost line outside of memback, where Python shows it by default."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, DeprecationWarning, level)
