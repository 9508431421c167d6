"""Cards and optimisers by the names that they have on the command line."""

from __future__ import annotations

import re

import torch

from memback.bridges.torch.device.cards import card
from memback.bridges.torch.loading import find
from memback.bridges.torch.recording.training import Optimizer
from memback.errors import UsageError
from memback.profiling.schema import choose

__all__ = ["card_named", "optimizer_named"]


def card_named(device: str, dry: bool) -> str | None:
    """The card that a device's name stands for; None where it names a device of this machine.

    ``cuda`` alone is a card where there is none and the run is dry.

    Raises:
        UsageError: there is no such card, or it is to be run on.
    """
    kind, _, which = device.strip().lower().partition(":")
    if kind != "cuda" or re.fullmatch(r"\d+", which) or (not which and (torch.cuda.is_available() or not dry)):
        return None
    name = card(device).name
    if not dry:
        raise UsageError(f"--device {device} names a card, which can be predicted for only: add --dry")
    return f"cuda:{name}"


def optimizer_named(name: str) -> Optimizer:
    """A class of PyTorch's optimisers by its name in any case, or what ``package.module:name`` refers to.

    Raises:
        UsageError: there is none.
    """
    if ":" in name:
        return find(name)
    known = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    if name.lower() not in known:
        raise UsageError(f"{choose('optimizer', name.lower(), known)}; or write package.module:function")
    return known[name.lower()]
