"""A module and what it is called with, from ``package.module:factory``."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from memback.bridges.torch.inputs import Input
from memback.bridges.torch.paths import described
from memback.errors import MembackError, OutOfMemoryError, UsageError, shorten
from memback.profiling.guard import available_memory
from memback.profiling.schema import choose
from memback.units import format_bytes_short

__all__ = ["Loaded", "device_named", "find", "load"]


@dataclass(frozen=True)
class Loaded:
    """A module, and what it is called with by position and by name."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def find(reference: str) -> Any:
    """What ``package.module:name`` refers to; the working folder is looked through, too.

    Raises:
        UsageError: it is no such reference, or leads to nothing.
        MembackError: importing it fails.
    """
    place, colon, name = reference.partition(":")
    if not (colon and place and name):
        raise UsageError(f"{shorten(repr(reference))} names nothing; write it as package.module:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module {error.name!r} to be found from {os.getcwd()} (for {reference!r})"
            ) from error
        raise MembackError(f"{place} can't be imported: {error}") from error
    except Exception as error:
        raise MembackError(f"{place} can't be imported: {described(error)}") from error
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError:
        known = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == place]
        raise UsageError(f"{place}: {choose('factory', name, known)}") from None


def load(reference: str, inputs: Sequence[Input], device: torch.device | None = None, dry: bool = False) -> Loaded:
    """Have the factory make its module, and make the inputs.

    Args:
        reference: of a module, or of what gives one (or a pair of one and its inputs: a tensor, a list or tuple of
            arguments, or a dict of arguments by name) when called without arguments.
        inputs: what the module is called with, where the factory does not say.
        device: where the module and its inputs are made, and moved to; by default they stay where they were made.
        dry: whether everything is made without memory.

    Raises:
        UsageError: as :func:`find`; or the factory gives something else, or inputs are given twice or not at all.
        OutOfMemoryError: there is not enough memory for the inputs.
        MembackError: the factory fails.
    """
    found = find(reference)
    with _without_memory() if dry else nullcontext():
        made = found if isinstance(found, torch.nn.Module) else _call(reference, found, device, dry)
        module, given = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        if not isinstance(module, torch.nn.Module):
            raise UsageError(
                f"{reference} gives {made!r:.80}, which is no torch.nn.Module (nor a pair of one and inputs)"
            )
        if given is not None and inputs:
            raise UsageError(f"{reference} gives the inputs itself: leave out --input")
        if given is None and not inputs:
            raise UsageError(f"say what {reference} is called with: --input 8x3x224x224, --input 8x1024:int64, ...")
        if device is not None and not dry:
            module = module.to(device)
        if given is not None:
            args, kwargs = _given(given, device)
        else:
            where = device or _device_of(module)
            if not dry:
                _check_space(inputs, where)
            args, kwargs = _made(inputs, where)
    return Loaded(module, args, kwargs)


@contextmanager
def _without_memory() -> Iterator[None]:
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # copy.deepcopy does
        yield


def device_named(name: str) -> torch.device:
    """A device by its name, such as ``cpu`` or ``cuda:1``. It must be there for a dry run, too: PyTorch asks it.

    Raises:
        UsageError: there is no such device, or none here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}; write it as cpu, cuda or cuda:1") from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UsageError(f"device {name} is not there: this PyTorch finds {count} CUDA devices")
    return device


def _call(reference: str, factory: Any, device: torch.device | None, dry: bool) -> Any:
    if not callable(factory):
        raise UsageError(f"{reference} is {factory!r:.80}, which can't be called to give a module")
    try:
        with nullcontext() if device is None else device:
            return factory()
    except MembackError:
        raise
    except Exception as error:
        how = " without memory; if it needs numbers, profile it without --dry" if dry else ""
        raise MembackError(f"{reference} can't make its module{how}: {described(error)}") from error


def _device_of(module: torch.nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _check_space(inputs: Sequence[Input], device: torch.device) -> None:
    """Refuse inputs for which there is no memory, before one is made.

    Raises:
        OutOfMemoryError: there is less.
    """
    if device.type == "meta":
        return
    size = sum(one.nbytes for one in inputs)
    if device.type == "cuda":
        free, limit = torch.cuda.mem_get_info(device)[0], "free memory of the device"
    else:
        available = available_memory()
        free, limit = available.bytes, available.limit
    if size > free:
        raise OutOfMemoryError(
            f"the inputs take {format_bytes_short(size)}, but there are {format_bytes_short(free)}: {limit}. Make"
            " --input smaller, or predict with --dry",
            size,
        )


def _made(inputs: Sequence[Input], device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args = tuple(one.make(device) for one in inputs if one.name is None)
    return args, {one.name: one.make(device) for one in inputs if one.name is not None}


def _given(given: Any, device: torch.device | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) and device is not None else value

    given = tree_map(moved, given)
    if isinstance(given, Mapping):
        return (), dict(given)
    return (tuple(given), {}) if isinstance(given, (list, tuple)) else ((given,), {})
