"""A module and what it is called with, from ``package.module:factory``."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from memback.bridges.torch.recording.arguments import typed
from memback.bridges.torch.recording.inputs import Input
from memback.bridges.torch.recording.paths import described
from memback.errors import MembackError, OutOfMemoryError, UsageError, shorten
from memback.profiling.guard import available_memory
from memback.profiling.schema import choose
from memback.units import format_bytes_short

__all__ = ["Loaded", "device_named", "find", "load", "without_memory"]


@dataclass(frozen=True)
class Loaded:
    """A module, what it is called with by position and by name, and what a report shall say of that (its ``data``)."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)


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


def load(
    reference: str,
    inputs: Sequence[Input],
    device: torch.device | None = None,
    dry: bool = False,
    arguments: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Loaded:
    """Have the factory make its module, and make the inputs.

    Args:
        reference: of a module, or of what gives one when it is called; or a pair of one and its inputs (a tensor, a
            list or tuple of arguments, or a dict of arguments by name); or one, arguments, and arguments by name.
        inputs: what the module is called with, where the factory does not say.
        device: where the module and its inputs are made, and moved to; by default they stay where they were made.
        dry: whether everything is made without memory.
        arguments: what the factory is called with, as text by name.
        dtype: what floating-point parameters, buffers and inputs are turned into; by default they stay as they are.

    Raises:
        UsageError: as :func:`find`; or the factory gives something else, or wants other arguments; or inputs are given
            twice or not at all.
        OutOfMemoryError: there is not enough memory for the inputs.
        MembackError: the factory fails.
    """
    found = find(reference)
    with without_memory() if dry else nullcontext():
        made = _call(reference, found, device, dry, arguments or {})
        module, given = _parts(made)
        if not isinstance(module, torch.nn.Module):
            shown = " ".join(repr(made).split())
            raise UsageError(
                f"{reference} gives {shown:.80}, which is no torch.nn.Module (nor one with inputs: (module, inputs) or"
                " (module, args, kwargs))"
            )
        if given is not None and inputs:
            raise UsageError(f"{reference} gives the inputs itself: leave out --input")
        if given is None and not inputs:
            raise UsageError(f"say what {reference} is called with: --input 8x3x224x224, --input 8x1024:int64, ...")
        if device is not None and not dry:
            module = module.to(device)
        if dtype is not None:
            module = module.to(dtype)
        if given is not None:
            args, kwargs = _moved(given, device)
        else:
            where = device or _device_of(module)
            if not dry:
                _check_space(inputs, where)
            args, kwargs = _made(inputs, where)
        if dtype is not None:
            args, kwargs = _cast((args, kwargs), dtype)
    return Loaded(module, args, kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """In the block modules and tensors are made without memory."""
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode, _convertible(mode):
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # copy.deepcopy does
        yield


@contextmanager
def _convertible(mode: FakeTensorMode) -> Iterator[None]:
    """In the block ``module.to(torch.bfloat16)`` works, which PyTorch refuses where the mode's memo has parameters."""
    swap = torch.utils.swap_tensors

    def swap_unknown(one: torch.Tensor, other: torch.Tensor) -> None:
        mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
        swap(one, other)

    torch.utils.swap_tensors = swap_unknown
    try:
        yield
    finally:
        torch.utils.swap_tensors = swap


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


def _call(reference: str, factory: Any, device: torch.device | None, dry: bool, arguments: Mapping[str, str]) -> Any:
    if isinstance(factory, torch.nn.Module):
        if arguments:
            raise UsageError(f"{reference} is a module already, and takes no --arg: name what makes it")
        return factory
    if not callable(factory):
        raise UsageError(f"{reference} is {factory!r:.80}, which can't be called to give a module")
    named = typed(reference, factory, arguments)
    try:
        with nullcontext() if device is None else device:
            return factory(**named)
    except MembackError:
        raise
    except Exception as error:
        how = " without memory; if it needs numbers, profile it without --dry" if dry else ""
        raise MembackError(f"{reference} can't make its module{how}: {described(error)}") from error


def _parts(made: Any) -> tuple[Any, Any]:
    """The module, and what it is called with, by position and by name, where a factory says so."""
    match made:
        case (module, (tuple() | list()) as args, Mapping() as kwargs):
            return module, (tuple(args), dict(kwargs))
        case (module, value, Mapping() as kwargs):
            return module, ((value,), dict(kwargs))
        case (module, Mapping() as kwargs):
            return module, ((), dict(kwargs))
        case (module, (tuple() | list()) as args):
            return module, (tuple(args), {})
        case (module, None):
            return module, None
        case (module, value):
            return module, ((value,), {})
        case _:
            return made, None


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


def _moved(given: Any, device: torch.device | None) -> Any:
    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) and device is not None else value

    return tree_map(moved, given)


def _cast(given: Any, dtype: torch.dtype) -> Any:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tree_map(cast, given)
