"""What a dry run leaves in the user's own objects: found, and put back.

A step may keep what it computes anywhere: in a dict of its module's, a global, a class, a cache. What it keeps in a dry
run has no memory, and would make the next real step another one without a word.
"""

from __future__ import annotations

import gc
import sys
import types
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from memback.bridges.torch.recording.dry_mode import DryMode
from memback.bridges.torch.recording.heap import all_objects_seen
from memback.errors import MembackError

__all__ = ["LeftoverError", "looked_for_once", "put_back"]

_MOST = 10_000
"""Objects that are looked through, the nearest first."""

_ATOMS = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, types.ModuleType)
_CONTAINERS = (dict, list, set, deque)
_CACHE: Any = type(lru_cache(lambda: None))
_APART = ("memback.", "torch.distributed.")
"""How modules begin whose objects are put back by who exchanges them (:mod:`.standing_in`)."""


class LeftoverError(MembackError):
    """A dry run has left a tensor without memory where it can't be taken from."""


_ENDED: ContextVar[list[DryMode] | None] = ContextVar("_ENDED", default=None)
"""The dry runs of which it is looked for later who holds their tensors; None where it is looked for at once."""


@contextmanager
def looked_for_once() -> Iterator[None]:
    """In the block dry runs put back what they can, and holders of what they can't are looked for at its end alone.

    That takes walks over all objects wherever a tensor is alive: at a dry run's own end its callers still have some.

    Raises:
        LeftoverError: as :func:`put_back`.
    """
    ended: list[DryMode] = []
    token = _ENDED.set(ended)
    try:
        yield
    finally:
        _ENDED.reset(token)
    for mode in ended:
        _refuse_leftovers(mode)


@contextmanager
def put_back(mode: DryMode, *roots: Any) -> Iterator[None]:
    """After the block nothing that a dry run made is in what can be reached from ``roots``.

    Lists, dicts, attributes, classes, globals and closures that hold such a tensor have what they held before, and a
    ``lru_cache`` that has been filled is emptied.

    Raises:
        LeftoverError: such a tensor is held by something else, which the message names.
    """
    seen = _Seen(roots)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        if mode.alive():
            seen.put_back()
    ended = _ENDED.get()
    if ended is None:
        _refuse_leftovers(mode)
    else:
        ended.append(mode)


def _refuse_leftovers(mode: DryMode) -> None:
    if mode.alive() and (holder := _holder(mode)):
        raise LeftoverError(
            f"the step keeps a tensor of its dry run in {holder}, where a real step would meet it: have it keep nothing"
            " there, or run it for real"
        )


class _Seen:
    """What containers, objects, classes and closures held at first."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self._found: list[tuple[Any, Any]] = []
        self._caches: list[tuple[Any, int]] = []
        self._globals: set[int] = set()
        met: set[int] = set()
        queue: deque[Any] = deque(roots)
        while queue and len(met) < _MOST:
            value = queue.popleft()
            if isinstance(value, _ATOMS) or id(value) in met:
                continue
            met.add(id(value))
            queue += self._within(value)

    def _within(self, value: Any) -> Iterable[Any]:
        """Note what a value holds, and give what is to be looked through for it."""
        if isinstance(value, _CONTAINERS):
            self._found.append((value, dict(value) if isinstance(value, dict) else list(value)))
            return list(value.values() if isinstance(value, dict) else value)
        if isinstance(value, (tuple, frozenset)):
            return list(value)
        if isinstance(value, torch.Tensor):
            return (getattr(value, "_post_accumulate_grad_hooks", None), value._backward_hooks)
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        if isinstance(value, types.MethodType):
            return (value.__self__, value.__func__)
        if isinstance(value, partial):
            return (value.func, value.args, value.keywords)
        if isinstance(value, _CACHE):
            self._caches.append((value, value.cache_info().currsize))
            return ()
        if isinstance(value, type):
            return self._of_class(value)
        within = getattr(value, "__dict__", None)
        is_module = isinstance(value, torch.nn.Module)
        if not isinstance(within, dict) or (type(value).__module__.startswith(_APART) and not is_module):
            return ()
        classes = type(value).__mro__ if is_module else ()
        hooked = value.parameters(recurse=False) if is_module else ()
        return [within, *classes, *hooked]

    def _of_function(self, function: types.FunctionType) -> list[Any]:
        cells = [cell for cell in function.__closure__ or () if _filled(cell)]
        self._found += [(cell, cell.cell_contents) for cell in cells]
        self._of_globals(function.__globals__)
        return [
            *(cell.cell_contents for cell in cells),
            *(function.__defaults__ or ()),
            *_named(function, function.__code__),
        ]

    def _of_class(self, cls: type) -> list[Any]:
        """Its own attributes; PyTorch's classes keep nothing."""
        if cls.__module__.partition(".")[0] in ("torch", "builtins", "abc"):
            return []
        attributes = dict(vars(cls))
        self._found.append((cls, attributes))
        if (module := sys.modules.get(cls.__module__)) is not None:
            self._of_globals(vars(module))
        return [v for v in attributes.values() if isinstance(v, (*_CONTAINERS, types.FunctionType))]

    def _of_globals(self, names: dict[str, Any]) -> None:
        if id(names) not in self._globals:
            self._globals.add(id(names))
            self._found.append((names, dict(names)))

    def put_back(self) -> None:
        for found, before in self._found:
            _restore(found, before)
        for function, size in self._caches:
            if function.cache_info().currsize > size:
                function.cache_clear()


def _named(function: types.FunctionType, code: Any) -> Iterator[Any]:
    """The globals that a function's code names, and that can keep something."""
    for name in code.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, (*_CONTAINERS, types.FunctionType, _CACHE)):
            yield value
        elif type(value).__module__.partition(".")[0] in ("torch", "builtins", "typing"):
            continue
        elif not isinstance(value, (type, types.ModuleType)) and hasattr(value, "__dict__"):
            yield value


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _restore(found: Any, before: Any) -> None:
    """Have what held other things before hold them again, wherever it now holds a fake tensor."""
    if isinstance(found, types.CellType):
        if _filled(found) and found.cell_contents is not before and _is_fake(found.cell_contents):
            found.cell_contents = before
    elif isinstance(found, type):
        for name, value in list(vars(found).items()):
            if value is not before.get(name, _NOTHING) and _is_fake(value):
                setattr(found, name, before[name]) if name in before else delattr(found, name)
    elif isinstance(found, dict):
        for name, value in list(found.items()):
            if value is not before.get(name, _NOTHING) and _is_fake(value):
                if name in before:
                    found[name] = before[name]
                else:
                    del found[name]
    elif list(map(id, found)) != list(map(id, before)) and any(map(_is_fake, found)):
        found.clear()
        (found.update if isinstance(found, set) else found.extend)(before)


_NOTHING = object()


def _is_fake(value: Any, depth: int = 6) -> bool:
    """Whether a value is, or holds, a fake tensor."""
    if isinstance(value, torch.Tensor):
        return isinstance(value, FakeTensor)
    if depth == 0 or isinstance(value, (*_ATOMS, type)):
        return False
    if isinstance(value, dict):
        held: Iterable[Any] = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        held = list(value)
    else:
        within = getattr(value, "__dict__", None)
        held = within.values() if isinstance(within, dict) else ()
    return any(_is_fake(one, depth - 1) for one in held)


def _holder(mode: DryMode) -> str:
    """The global, not of PyTorch or memback, that a living tensor of a dry run is reached from; empty if none is."""
    names = {id(vars(m)): n for n, m in list(sys.modules.items()) if n.partition(".")[0] not in ("torch", "memback")}
    with all_objects_seen():
        level: list[Any] = mode.alive()[:_ABREAST]
        ours, met = {id(level)}, set[int]()
        for _ in range(_UPWARDS):
            above: list[Any] = []
            for holder in gc.get_referrers(*level):  # one walk over all objects
                if id(holder) in names:
                    held = next((name for name, value in holder.items() if any(value is one for one in level)), "?")
                    return f"the global {held} of {names[id(holder)]}"
                new = id(holder) not in met | ours and not issubclass(type(holder), _PASSED_OVER)
                if new and len(above) < _ABREAST:
                    met.add(id(holder))
                    above.append(holder)
            if not above:
                break
            ours |= {id(level), id(above)}
            level = above
    return ""


_PASSED_OVER = (types.FrameType, types.ModuleType)
_UPWARDS = 5
_ABREAST = 32
"""How many holders of holders are asked, and how many at once, since each walk looks for all of them everywhere."""
