"""Tensors that stand in for others in place: whoever holds one of them, holds the other for as long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["swapped"]


@contextmanager
def swapped(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """In the block the two tensors of each pair have changed places, in every list, closure, optimiser and module.

    Their gradients go with them, and what is written to one of them afterwards is gone with it; hooks stay where they
    were registered.
    """
    done: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        for pair in pairs:
            _swap(*pair)
            done.append(pair)
        yield
    finally:
        while done:
            _swap(*done.pop())


def _swap(one: torch.Tensor, other: torch.Tensor) -> None:
    """As :func:`torch.utils.swap_tensors`, which refuses tensors that somebody else refers to."""
    one.__class__, other.__class__ = other.__class__, one.__class__
    try:
        torch._C._swap_tensor_impl(one, other)
    except RuntimeError:  # somebody refers to what is in one of them
        one.__class__, other.__class__ = other.__class__, one.__class__
        raise
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    for tensor in (one, other):
        if tensor.is_leaf and tensor.requires_grad:  # have the hooks of this object be run for what is in it now
            tensor._backward_hooks = tensor._backward_hooks
            tensor._post_accumulate_grad_hooks = tensor._post_accumulate_grad_hooks
