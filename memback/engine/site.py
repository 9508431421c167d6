"""Where in the source a call was made, and how errors name it."""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import TypeAlias

import numpy as np

__all__ = ["Site", "call_site", "describe", "short_path"]


Site: TypeAlias = tuple[CodeType, int]
"""A place in the source: a code object and an instruction in it. Holds no frame, so keeps no variable alive."""


class _Internal(dict[str, bool]):
    """Whether a source file is part of the engine or of NumPy: a call made there is charged to who called it."""

    _package = __file__.rpartition("engine")[0]
    _numpy = np.__file__.rpartition("__init__.py")[0]
    _users = (f"{_package}models", f"{_package}commands")

    def __missing__(self, filename: str) -> bool:
        internal = filename.startswith((self._package, self._numpy)) and not filename.startswith(self._users)
        self[filename] = internal
        return internal


_internal = _Internal()


def call_site() -> Site | None:
    """The innermost place outside the engine that led here."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if not _internal[code.co_filename]:
            return code, frame.f_lasti
        frame = frame.f_back
    return None


def short_path(site: Site | None) -> str:
    """A site as ``file.py:41``, or an empty string where there is none."""
    if site is None:
        return ""
    code, instruction = site
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return f"{code.co_filename.rpartition('/')[2]}:{line}"
    return code.co_filename.rpartition("/")[2]


def describe(op: str, path: str, site: Site | None) -> str:
    """An op call in an error: its name, layer path and source line."""
    return f"{op} (layer {path or '(top)'!r}, called at {short_path(site) or 'an unknown line'})"
