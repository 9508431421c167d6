"""Where CUDA's way differs from what a CPU build of PyTorch does: two tables, which the families of ops fill.

A *composite* stands for an op that PyTorch takes apart by the device, before autograd. A *kernel* stands for an op
whose kernel on CUDA takes memory besides what it gives, or gives another tensor than PyTorch's own fake one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

__all__ = ["KERNELS", "composite", "composites_taken_apart", "kernel"]

KERNELS: dict[Any, Callable[..., Any]] = {}
"""By op; called with the mode that runs it, and with the op's arguments."""

_COMPOSITES: dict[str, Callable[..., Any]] = {}

_Function = TypeVar("_Function", bound=Callable[..., Any])


def composite(name: str) -> Callable[[_Function], _Function]:
    """Have a function stand for a composite op of ATen's (``dropout``, ``to.dtype_layout``)."""

    def noted(function: _Function) -> _Function:
        _COMPOSITES[name] = function
        return function

    return noted


def kernel(*ops: Any) -> Callable[[_Function], _Function]:
    """Have a function stand for ops below autograd."""

    def noted(function: _Function) -> _Function:
        KERNELS.update(dict.fromkeys(ops, function))
        return function

    return noted


@contextmanager
def composites_taken_apart() -> Iterator[None]:
    """In the block composite ops on CUDA's tensors are taken apart as CUDA does it."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for name, function in _COMPOSITES.items():
            library.impl(name, function, "AutogradCUDA")
        yield
    finally:
        library._destroy()
