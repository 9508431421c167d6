"""When backward and the update of a training step run, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

__all__ = ["Phases", "told_of_phases"]


class Phases:
    """What is told of a step's phases; here nothing comes of it."""

    def backward_begins(self) -> None:
        """The forward pass is over."""

    def backward_ended(self) -> None:
        """A backward pass is over."""

    def update_begins(self) -> None:
        """An optimiser begins its step: in the midst of backward, too, where hooks have it do so."""

    def update_ended(self) -> None:
        """It is done."""


@contextmanager
def told_of_phases(phases: Phases) -> Iterator[None]:
    """In the block ``phases`` is told of backward passes, and of the steps of PyTorch's optimisers.

    Gradients that can be differentiated themselves (``create_graph``) are part of the forward pass.
    """
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: phases.update_begins()),
        register_optimizer_step_post_hook(lambda *_: phases.update_ended()),
    ]
    try:
        with (
            patch.object(torch.autograd, "backward", _telling(torch.autograd.backward, phases)),
            patch.object(torch.autograd, "grad", _telling(torch.autograd.grad, phases)),
        ):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _telling(run: Callable[..., Any], phases: Phases) -> Callable[..., Any]:
    def told(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("create_graph") or torch._C._current_graph_task_id() != -1:
            return run(*args, **kwargs)
        phases.backward_begins()
        try:
            return run(*args, **kwargs)
        finally:
            phases.backward_ended()

    return told
