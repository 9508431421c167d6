"""Segments of blocks that a model calls itself, one after the other, such as in a loop over its layers.

The model decides what it calls, so a segment of several blocks is known when its last one is called. Up to then the
model gets stand-ins for the outputs, which it may only give to the next block; that call of the last block runs the
whole segment. Whatever else a model does with a stand-in is an error, because it would need a value that is not there.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

from memback.engine.checkpoint import run_segment
from memback.engine.state import State, at_path, current
from memback.errors import UsageError, shorten

if TYPE_CHECKING:
    from memback.nn.module import Module

__all__ = ["CalledBlocks", "find_blocks"]


def find_blocks(model: Module, names: Sequence[str]) -> list[tuple[str, Module]]:
    """The modules below ``model`` whose names match the patterns, each with its name, in the patterns' order.

    A module is there as often as its names match: twice, if it is called twice. Nothing is looked for inside of a
    module that matches.

    Raises:
        UsageError: a pattern matches nothing, or one block lies inside of another.
    """
    found: list[tuple[str, Module]] = []
    for pattern in names:
        matching = list(_walk(model, pattern))
        if not matching:
            children = ", ".join(model._modules) or "none"
            raise UsageError(
                f"no module of {type(model).__name__} is called {shorten(repr(pattern))}; its children are {children}"
            )
        found += matching
    for name, _ in found:
        inside = next((other for other, _ in found if other.startswith(f"{name}.")), None)
        if inside is not None:
            raise UsageError(f"block {inside!r} lies inside of block {name!r}: name one of them")
    return found


def _walk(model: Module, pattern: str, prefix: str = "") -> Iterator[tuple[str, Module]]:
    for name, child in model._modules.items():
        if fnmatch.fnmatchcase(prefix + name, pattern):
            yield prefix + name, child
        else:
            yield from _walk(child, pattern, f"{prefix}{name}.")


class _Call(NamedTuple):
    """A call of a block: ``args`` are those after the first, which is the block's input."""

    path: str
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Progress(threading.local):
    """How far a thread's forward pass has come: the place of the next block, and the calls of an unfinished segment."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.place = 0
        self.calls: list[_Call] = []
        self.input: Any = None
        self.stand_in: _StandIn | None = None
        self.moment: tuple[Any, ...] = ()


class Segmented(Protocol):
    """A policy, as far as its blocks know it."""

    @property
    def name(self) -> str: ...

    @property
    def keep(self) -> frozenset[str]: ...

    def segments(self, units: int) -> Iterator[tuple[int, int, bool]]: ...


class CalledBlocks:
    """Runs blocks, in the order in which a model calls them, as the segments of a policy."""

    def __init__(self, blocks: Sequence[tuple[str, Module]], policy: Segmented) -> None:
        self.blocks = [module for _, module in blocks]
        self.names = [name for name, _ in blocks]
        self.policy = policy
        self.segments = [
            segment for segment in policy.segments(len(blocks)) for _ in range(segment[0], segment[1])
        ]  # by place
        self.progress = _Progress()

    def run_model(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the model's forward, which calls all blocks or none.

        Raises:
            UsageError: it calls fewer of them, so that they are not the segments that the policy cut.
        """
        self.progress.begin()
        out = forward(*args, **kwargs)
        called = self.progress.place
        if called % len(self.blocks):
            self.progress.begin()
            raise UsageError(
                f"policy {self.policy.name!r}: the model called {called} of {len(self.blocks)} named blocks, up to"
                f" {self.names[called - 1]!r}; name those that it calls, one that is called twice two times"
            )
        return out

    def runner(self, block: Module) -> Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]:
        """What runs ``block`` in place of its forward."""

        def run(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            try:
                return self._run(self._place(block), forward, args, kwargs)
            except BaseException:
                self.progress.begin()
                raise

        return run

    def _place(self, block: Module) -> int:
        """Which call of the order this is; a new forward pass begins with the first, however the last one ended."""
        place = self.progress.place % len(self.blocks)
        if self.blocks[place] is block:
            return place
        if self.blocks[0] is block:
            self.progress.begin()
            return 0
        raise UsageError(
            f"policy {self.policy.name!r}: {block.path!r} is called where {self.names[place]!r} is the next of the"
            " blocks; name them in the order of their calls, one that is called twice two times"
        )

    def _run(self, place: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start, stop, checkpointed = self.segments[place]
        progress, state = self.progress, current()
        progress.place = place + 1
        if not checkpointed:
            return forward(*args, **kwargs)
        if stop - start == 1:
            return run_segment(forward, args, kwargs, self.policy.keep, warn=False)
        if place > start:
            self._check_follows(place, args, state)
        elif args:
            progress.calls, progress.input, progress.moment = [], args[0], _moment(state)
        else:
            raise UsageError(f"block {self.names[place]!r} is called without its input as the first argument")
        progress.calls.append(_Call(state.path, forward, args[1:], kwargs))
        if place + 1 < stop:
            progress.stand_in = _StandIn(self._misuse(start, stop, place))
            return progress.stand_in
        calls, carry = progress.calls, [progress.input]
        progress.calls, progress.input, progress.stand_in = [], None, None
        return _run_together(calls, carry, self.policy)

    def _check_follows(self, place: int, args: tuple[Any, ...], state: State) -> None:
        if not args or args[0] is not self.progress.stand_in or _moment(state) != self.progress.moment:
            start, stop, _ = self.segments[place]
            raise UsageError(self._misuse(start, stop, place - 1))

    def _misuse(self, start: int, stop: int, place: int) -> str:
        return (
            f"policy {self.policy.name!r} runs blocks {self.names[start]!r} to {self.names[stop - 1]!r} as one segment:"
            f" the model must call {self.names[place + 1]!r} on the output of {self.names[place]!r}, as its first"
            " argument, and may neither use that output otherwise nor draw random numbers in between. Use policy 'all',"
            " whose segments are single blocks"
        )


def _moment(state: State) -> tuple[Any, ...]:
    """What must not change between the calls of a segment, because they run when the last one is called."""
    return id(state.tape), state.seed, state.draws


def _run_together(calls: Sequence[_Call], carry: list[Any], policy: Segmented) -> Any:
    forwards = [(call.path, call.forward) for call in calls]

    def chain(input: Any, *given: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
        for (path, forward), (args, kwargs) in zip(forwards, given, strict=True):
            with at_path(path):
                input = forward(input, *args, **kwargs)
        return input

    return run_segment(chain, (carry.pop(), *((call.args, call.kwargs) for call in calls)), {}, policy.keep, warn=False)


class _StandIn:
    """Stands for an output until its segment is run; every use but as the next block's input is refused."""

    __slots__ = ("_misuse",)

    def __init__(self, misuse: str) -> None:
        self._misuse = misuse

    def __getattr__(self, name: str) -> NoReturn:
        raise UsageError(self._misuse)


def _refuse(self: _StandIn, *args: Any, **kwargs: Any) -> NoReturn:
    raise UsageError(self._misuse)


_SPECIAL = (
    *("array", "array_function", "array_ufunc", "bool", "float", "getitem", "int", "iter", "len", "setitem"),
    *("add", "matmul", "mul", "pow", "sub", "truediv", "abs", "neg"),
    *("radd", "rmatmul", "rmul", "rpow", "rsub", "rtruediv"),
    *("eq", "ge", "gt", "le", "lt", "ne"),
)
for _name in _SPECIAL:
    setattr(_StandIn, f"__{_name}__", _refuse)
