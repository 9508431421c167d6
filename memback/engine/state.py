"""What the engine knows of the running thread: its tape, its observer, where it is and its random stream.

One object a thread, so that two threads never record on each other's tape. It is looked up once an op.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from memback.engine.arrays import DryArray
from memback.engine.observer import Observer

__all__ = ["Setting", "State", "at_path", "current", "is_recomputing", "manual_seed"]


class State:
    """The engine's state in one thread.

    ``seed`` and ``draws`` are the random stream: the n-th random op of a stream is keyed by (seed, n), so a
    recomputation that sets ``draws`` back draws the same bits again, whatever ran in between.
    """

    __slots__ = (
        "anomaly",
        "checkpointing",
        "draws",
        "dry",
        "observer",
        "packing",
        "path",
        "recomputing",
        "seed",
        "stand_ins",
        "tape",
    )

    new_tape: ClassVar[list[Callable[[], Any]]] = []
    """Makes a thread's default tape; filled in by :mod:`memback.engine.tape`, which this module may not import."""

    def __init__(self) -> None:
        # a Tape and saved_tensors_hooks, or None: their modules use this one
        self.tape: Any = self.new_tape[0]() if self.new_tape else None
        self.packing: Any = None
        self.observer: Observer | None = None
        self.path = ""
        self.anomaly = False
        self.recomputing = False
        self.dry: type[DryArray] | None = None  # what makes arrays without memory, on a dry run
        self.checkpointing = True
        self.seed = 0
        self.draws = 0
        self.stand_ins: dict[int, tuple[Any, Any]] = {}  # by id, what is replaced and what by

    def stand_in(self, thing: Any) -> Any:
        """What stands in place of something on this thread's dry run; itself where nothing does."""
        found = self.stand_ins.get(id(thing))
        return thing if found is None else found[1]

    def draw(self) -> tuple[int, int]:
        """Take the next key of the random stream: (seed, number of the draw)."""
        key = (self.seed, self.draws)
        self.draws += 1
        return key


class _Local(threading.local):
    def __init__(self) -> None:
        self.state = State()


_local = _Local()


def current() -> State:
    """The running thread's :class:`State`."""
    return _local.state


def manual_seed(seed: int) -> None:
    """Start this thread's random stream anew: what follows draws the same bits after the same seed.

    Raises:
        ValueError: ``seed`` is negative or does not fit into 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"manual_seed: `seed` (={seed}) must lie between 0 and 2**64 - 1")
    state = current()
    state.seed, state.draws = seed, 0


def is_recomputing() -> bool:
    """Whether an op is run again for backward: its side effects belong in the first run alone.

    The function of a checkpoint and the layers in it run once, so only ops need to ask.
    """
    return current().recomputing


class Setting:
    """Sets a field of the thread's state in a block.

    One object may be entered again, in its own block and in other threads: each block ends with what it began with.
    """

    field: ClassVar[str]

    def __init__(self) -> None:
        self._before: dict[State, list[Any]] = {}

    def value(self) -> Any:
        """What the field is in the block."""
        return True

    @property
    def entered(self) -> bool:
        """Whether a block is running."""
        return bool(self._before)

    def __enter__(self) -> Any:
        state = current()
        self._before.setdefault(state, []).append(getattr(state, self.field))
        setattr(state, self.field, self.value())
        return self

    def __exit__(self, *_: Any) -> None:
        state = current()
        before = self._before[state]
        setattr(state, self.field, before.pop())
        if not before:
            del self._before[state]


@contextmanager
def at_path(path: str) -> Iterator[None]:
    """Run the block as the layer ``path``: ops that are called in it carry this name."""
    state = current()
    before, state.path = state.path, path
    try:
        yield
    finally:
        state.path = before
