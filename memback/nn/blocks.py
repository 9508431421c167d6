"""Segments of blocks that a model calls itself, one after the other, such as in a loop over its layers.

A segment begins where its first block is called and ends where its last one returns. What the model does in between is
a part of it.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from memback.engine.checkpoint import segment
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


class _Progress(threading.local):
    """How far a thread's forward pass has come: the place of the next block, and the segment that has begun."""

    inside = False
    """Whether the model's own forward runs."""

    def __init__(self) -> None:
        self.place = 0
        self.open = ExitStack()


class BlockPolicy(Protocol):
    """A policy, as far as its blocks know it."""

    @property
    def name(self) -> str: ...

    @property
    def keep(self) -> frozenset[str]: ...

    def segments(self, units: int) -> Iterator[tuple[int, int, bool]]: ...


class CalledBlocks:
    """Runs blocks, in the order in which a model calls them, as the segments of a policy."""

    def __init__(self, blocks: Sequence[tuple[str, Module]], policy: BlockPolicy) -> None:
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
        progress = self.progress
        progress.place, progress.inside = 0, True
        try:
            with progress.open:
                out = forward(*args, **kwargs)
                called = progress.place
                if called % len(self.blocks):
                    raise UsageError(
                        f"policy {self.policy.name!r}: the model called {called} of {len(self.blocks)} named blocks, up"
                        f" to {self.names[called - 1]!r}; name those that it calls, one that is called twice two times"
                    )
        finally:
            progress.inside = False
        return out

    def runner(self, block: Module) -> Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]:
        """What runs ``block`` in place of its forward."""

        def run(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self.progress.inside:
                return forward(*args, **kwargs)
            place = self._place(block)
            self.progress.place = place + 1
            return self._run(place, forward, args, kwargs)

        return run

    def _place(self, block: Module) -> int:
        """Which call of the order this is.

        Raises:
            UsageError: it is another block's turn.
        """
        place = self.progress.place % len(self.blocks)
        if self.blocks[place] is not block:
            raise UsageError(
                f"policy {self.policy.name!r}: {block.path!r} is called where {self.names[place]!r} is the next of the"
                " blocks; name them in the order of their calls, one that is called twice two times"
            )
        return place

    def _run(self, place: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start, stop, checkpointed = self.segments[place]
        progress = self.progress
        if checkpointed and place == start:
            progress.open.enter_context(segment(self.policy.keep, forward, args, kwargs))
        out = forward(*args, **kwargs)
        if checkpointed and place + 1 == stop:
            progress.open.close()
        return out
