"""Any code that trains once, where its tensors are: run dry, or for real, and afterwards as if it had not been."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import optimizer
from torch.utils import _foreach_utils

from memback.bridges.torch.recording.dry_mode import DryMode
from memback.bridges.torch.recording.fake import exchanged_input, fake_mode, fake_of
from memback.bridges.torch.recording.found import Found
from memback.bridges.torch.recording.leftovers import put_back
from memback.bridges.torch.recording.restoring import other_streams_kept
from memback.bridges.torch.recording.swapping import swapped

__all__ = ["dry_in_place", "real_in_place"]

_FOREACH = optimizer._foreach_supported_types


@contextmanager
def dry_in_place(found: Found, *roots: Any) -> Iterator[Callable[[], None]]:
    """In the block every op is run dry, on what a step works with; see :mod:`.dry_mode`.

    Gives a function to be called after each step, which lets go of what nobody else holds any more.
    """
    own = [tensor for _, tensor in found.arguments()]
    mode = DryMode(fake_mode(own), (tensor for _, tensor in found.parameters()))
    mode.assumed = 1.0
    fake = partial(fake_of, mode.mode)
    pairs = [(tensor, exchanged_input(fake, (), tensor)) for tensor in _distinct(own) if tensor.is_meta]
    with (
        put_back(mode, roots, found.root, *found.optimizers, wholly=True) as let_go,
        other_streams_kept(),
        torch.random.fork_rng([]),
        _gradients_kept(own),
        swapped(pairs),
        patch.object(_foreach_utils, "_foreach_supported_types", [*_FOREACH, FakeTensor], create=True),
        mode,
    ):
        pairs.clear()
        yield let_go


@contextmanager
def real_in_place(found: Found, *roots: Any) -> Iterator[Callable[[], None]]:
    """In the block a step may be run for real: what it works with has its values back afterwards.

    Gives a function as :func:`dry_in_place`.
    """
    own = list(_distinct(tensor for _, tensor in found.arguments()))
    own += _distinct(tensor.grad for tensor in own if tensor.is_leaf and tensor.grad is not None)
    copies = [tensor.detach().clone() for tensor in own]
    versions = [tensor._version for tensor in own]
    none_made = DryMode(fake_mode())
    with (
        put_back(none_made, roots, found.root, *found.optimizers, wholly=True) as let_go,
        other_streams_kept(),
        torch.random.fork_rng([]),
        _gradients_kept(own),
    ):
        try:
            yield let_go
        finally:
            with torch.no_grad():
                for tensor, copy, version in zip(own, copies, versions, strict=True):
                    if tensor._version != version or not torch.equal(tensor, copy):
                        tensor.copy_(copy)


def _distinct(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    met: set[int] = set()
    for tensor in values:
        if id(tensor) not in met:
            met.add(id(tensor))
            yield tensor


@contextmanager
def _gradients_kept(own: list[torch.Tensor]) -> Iterator[None]:
    leaves = [tensor for tensor in own if tensor.is_leaf]
    before = [tensor.grad for tensor in leaves]
    try:
        yield
    finally:
        for tensor, gradient in zip(leaves, before, strict=True):
            tensor.grad = gradient
