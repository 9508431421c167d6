"""What a dry run leaves in the user's own objects: found, and put back.

A step may keep what it computes anywhere: in a dict of its module's, a global, a class, a cache. What it keeps in a dry
run has no memory, and would make the next real step another one without a word.
"""

from __future__ import annotations

import gc
import sys
import types
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from memback.bridges.torch.recording.dry_mode import DryMode
from memback.bridges.torch.recording.heap import all_objects_seen
from memback.bridges.torch.recording.reach import ATOMS, CACHE, CONTAINERS, filled, reached
from memback.errors import MembackError

__all__ = ["LeftoverError", "looked_for_once", "put_back"]

_MOST = 10_000
"""Objects that are looked through, the nearest first."""
_MOST_WHOLLY = 1_000_000


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
def put_back(mode: DryMode, *roots: Any, wholly: bool = False) -> Iterator[Callable[[], None]]:
    """After the block nothing that a dry run made is in what can be reached from ``roots``.

    Lists, dicts, attributes, classes, globals and closures that hold such a tensor have what they held before, and a
    ``lru_cache`` that has been filled is emptied. ``wholly``: so have all lists, dicts, attributes and closures,
    whatever has become of them, such as counters; classes and globals apart.

    Gives a function that puts back what nobody holds any more but this, so that what is in it may go.

    Raises:
        LeftoverError: such a tensor is held by something else, which the message names.
    """
    seen = _Seen(roots, _MOST_WHOLLY if wholly else _MOST)
    torch.clear_autocast_cache()
    try:
        yield seen.let_go
    finally:
        torch.clear_autocast_cache()
        if wholly:
            seen.put_back_wholly()
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

    def __init__(self, roots: Iterable[Any], most: int) -> None:
        self._found: list[tuple[Any, Any]] = []
        self._caches: list[tuple[Any, int]] = []
        self._globals: set[int] = set()
        self._shared: list[tuple[Any, Any]] = []
        for value in reached(roots, most):
            self._note(value)

    def _note(self, value: Any) -> None:
        if isinstance(value, CONTAINERS):
            self._found.append((value, dict(dict.items(value)) if isinstance(value, dict) else list(value)))
        elif isinstance(value, types.FunctionType):
            cells = [cell for cell in value.__closure__ or () if filled(cell)]
            self._found += [(cell, cell.cell_contents) for cell in cells]
            self._of_globals(value.__globals__)
        elif isinstance(value, CACHE):
            self._caches.append((value, value.cache_info().currsize))
        elif isinstance(value, type) and value.__module__.partition(".")[0] not in ("torch", "builtins", "abc"):
            self._shared.append((value, dict(vars(value))))
            if (module := sys.modules.get(value.__module__)) is not None:
                self._of_globals(vars(module))

    def _of_globals(self, names: dict[str, Any]) -> None:
        if id(names) not in self._globals:
            self._globals.add(id(names))
            self._shared.append((names, dict(names)))

    def put_back(self) -> None:
        for found, before in (*self._found, *self._shared):
            _restore(found, before)
        for function, size in self._caches:
            if function.cache_info().currsize > size:
                function.cache_clear()

    def put_back_wholly(self) -> None:
        shared = {id(found) for found, _ in self._shared}
        for found, before in self._found:
            if id(found) not in shared:
                _have_again(found, before)

    def let_go(self) -> None:
        """Put back what nobody refers to any more but what is noted here."""
        noted = Counter(id(value) for _, before in self._found for value in _contents(before))
        for number in range(len(self._found)):
            found = self._found[number][0]
            if sys.getrefcount(found) == _LEAST_REFERENCES + noted[id(found)]:
                _have_again(found, self._found[number][1])


_LEAST_REFERENCES = 3
"""To an object that a variable and a tuple hold, as ``sys.getrefcount`` has it, whose argument is one."""


def _contents(before: Any) -> Iterable[Any]:
    if isinstance(before, dict):
        return before.values()
    return before if isinstance(before, list) else (before,)


def _have_again(found: Any, before: Any) -> None:
    """Have a container or a closure's cell hold what it held before."""
    if isinstance(found, types.CellType):
        found.cell_contents = before
    elif isinstance(found, dict):
        there = list(dict.items(found))  # of a class that makes what it is asked for, what it has
        same = len(there) == len(before) and all(
            key is name and value is was for (key, value), (name, was) in zip(there, before.items(), strict=True)
        )
        if not same:
            found.clear()
            found.update(before)
    elif list(map(id, found)) != list(map(id, before)):
        found.clear()
        (found.update if isinstance(found, set) else found.extend)(before)


def _restore(found: Any, before: Any) -> None:
    """Have what held other things before hold them again, wherever it now holds a fake tensor."""
    if isinstance(found, types.CellType):
        if filled(found) and found.cell_contents is not before and _is_fake(found.cell_contents):
            found.cell_contents = before
    elif isinstance(found, type):
        for name, value in list(vars(found).items()):
            if value is not before.get(name, _NOTHING) and _is_fake(value):
                setattr(found, name, before[name]) if name in before else delattr(found, name)
    elif isinstance(found, dict):
        for name, value in list(dict.items(found)):
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
    if depth == 0 or isinstance(value, (*ATOMS, type)):
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
