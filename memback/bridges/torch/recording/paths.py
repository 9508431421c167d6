"""Where in a model an op is called: the path of the module, and the line of the source."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from memback.engine.site import Site
from memback.files import PACKAGE

__all__ = ["ModulePaths", "call_site", "called_from", "described", "directly_from", "in_file", "matches"]

_INTERNAL = (
    *(f"{package}{os.sep}" for package in (Path(torch.__file__ or "").parent, PACKAGE)),
    "<frozen ",
    "<eval_with_key>",
)
"""How files begin that are PyTorch's, memback's or nobody's."""

_LIBRARY = f"{sysconfig.get_path('stdlib')}{os.sep}"
"""How files of Python's own library begin, and those in its ``site-packages``."""

_TORCH = Path(torch.__file__ or "").parent
_OF_MODES = (_INTERNAL[1], f"{_TORCH / '_dynamo'}{os.sep}", str(_TORCH / "_compile.py"))
"""How files begin that lie between an op and the mode that is told of it."""


class ModulePaths:
    """Knows, while it is entered, which submodule's forward is running.

    The hooks are PyTorch's global ones, so that the model has none of its own: some modules take another way where they
    have.

    Args:
        module: whose submodules are named; a module outside of it counts as the one that calls it.
    """

    def __init__(self, module: torch.nn.Module | None) -> None:
        modules = [] if module is None else list(module.named_modules())
        self._names = {id(owner): name for name, owner in modules}
        self._shared = _several_have(owner for _, owner in modules)
        self._within: dict[int, dict[int, str]] = {}
        self._stack: list[tuple[Any, str]] = []

    def __enter__(self) -> ModulePaths:
        self._hooks = [
            register_module_forward_pre_hook(self._begins),
            register_module_forward_hook(self._ended, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._stack.clear()

    @property
    def path(self) -> str:
        """That of the innermost running module; empty at the top."""
        return self._stack[-1][1] if self._stack else ""

    def name_of(self, module: torch.nn.Module) -> str:
        """A submodule's path; for one that is outside, that of what is running.

        One that several modules have is called as that one has it which is running.
        """
        if self._shared:
            for caller, path in reversed(self._stack):
                within = self._names_within(caller).get(id(module))
                if within is not None:
                    return f"{path}.{within}".strip(".")
        return self._names.get(id(module), self.path)

    def _names_within(self, caller: torch.nn.Module) -> dict[int, str]:
        if id(caller) not in self._within:
            self._within[id(caller)] = {id(owner): name for name, owner in caller.named_modules()}
        return self._within[id(caller)]

    @property
    def depth(self) -> int:
        """How many modules are running, one within the other."""
        return len(self._stack)

    def _begins(self, module: Any, inputs: Any) -> None:
        self._stack.append((module, self.name_of(module)))

    def _ended(self, module: Any, inputs: Any, output: Any) -> None:
        while self._stack and self._stack.pop()[0] is not module:
            continue


def matches(path: str, pattern: str) -> bool:
    """Whether a module's path fits a pattern, part by part: ``layer.*`` is ``layer.0``, not ``layer.0.mlp``."""
    parts, wanted = path.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _several_have(modules: Iterable[torch.nn.Module]) -> bool:
    """Whether any module is a member of more than one."""
    owners = Counter(id(member) for owner in modules for member in owner._modules.values() if member is not None)
    return any(number > 1 for number in owners.values())


def call_site() -> Site | None:
    """The innermost place outside PyTorch and memback that led here."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not _is_internal(frame.f_code.co_filename):
            return frame.f_code, frame.f_lasti
        frame = frame.f_back
    return None


def called_from(file: str) -> bool:
    """Whether it is code of ``file`` that, by way of PyTorch's C++, called what calls this: our own code aside."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_INTERNAL[1]):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename == file


def directly_from(file: str) -> bool:
    """Whether it is PyTorch's C++, called by code of ``file`` or by none, that called what calls this: modes aside."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OF_MODES):
        frame = frame.f_back
    return frame is None or frame.f_code.co_filename == file


def in_file(file: str) -> bool:
    """Whether code of ``file`` is among what led here."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == file:
            return True
        frame = frame.f_back
    return False


def described(error: BaseException) -> str:
    """An error of somebody else's code: its kind, its message, and the line of that code that led to it."""
    place, trace = "", error.__traceback__
    while trace is not None:
        if not _is_internal(trace.tb_frame.f_code.co_filename):
            place = f" (at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{place}"


@cache
def _is_internal(file: str) -> bool:
    return file.startswith(_INTERNAL) or (file.startswith(_LIBRARY) and f"-packages{os.sep}" not in file)
