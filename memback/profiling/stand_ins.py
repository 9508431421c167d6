"""Replacements of a model's arrays on a dry run, for the thread that makes the run and no other.

A model may train in one thread while another plans for it: both ask the same parameters for their data and gradients.
For as long as any dry run is under way, what they get depends on who asks.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from memback.engine.state import current
from memback.engine.tensor import Tensor, make
from memback.nn.module import Module, Parameter

if TYPE_CHECKING:
    from memback.optim import Optimizer

__all__ = ["stand_ins"]

_lock = threading.Lock()
_blocks = 0


class _OfThisThread:
    """An attribute of parameters that, in a thread with a stand-in, is the stand-in's."""

    def __init__(self, name: str) -> None:
        self._slot = Tensor.__dict__[name]

    def __get__(self, parameter: Any, kind: type) -> Any:
        return self if parameter is None else self._slot.__get__(current().stand_in(parameter), kind)

    def __set__(self, parameter: Any, value: Any) -> None:
        self._slot.__set__(current().stand_in(parameter), value)


@contextmanager
def _asked_by_thread() -> Iterator[None]:
    global _blocks
    with _lock:
        _blocks += 1
        if _blocks == 1:
            for name in ("data", "grad"):
                setattr(Parameter, name, _OfThisThread(name))
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                for name in ("data", "grad"):
                    delattr(Parameter, name)


@contextmanager
def stand_ins(
    module: Module | None, optimizer: Optimizer | None, without_memory: Callable[[Any], Any]
) -> Iterator[None]:
    """In the block this thread's parameters, buffers and optimiser state are what ``without_memory`` makes of them."""
    made: dict[int, tuple[Any, Any]] = {}

    def put(thing: Any, stand_in: Any) -> Any:
        made[id(thing)] = (thing, stand_in)  # which keeps the thing, so that no other has its id
        return stand_in

    parameters: list[Any] = [] if optimizer is None else list(optimizer.parameters)
    for owner in () if module is None else module.modules():
        parameters += owner._parameters.values()
        for array in owner._buffers.values():
            put(array, without_memory(array))
    for parameter in parameters:
        if id(parameter) not in made:
            put(parameter, make(put(parameter.data, without_memory(parameter.data)), None))
    if optimizer is not None:
        other = put(optimizer, copy.copy(optimizer))
        other.state = {name: list(map(without_memory, arrays)) for name, arrays in optimizer.state.items()}
    state = current()
    before, state.stand_ins = state.stand_ins, {**state.stand_ins, **made}
    try:
        with _asked_by_thread():
            yield
    finally:
        state.stand_ins = before
