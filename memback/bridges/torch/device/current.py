"""The mode that runs ops now, for code that PyTorch's dispatcher calls."""

from __future__ import annotations

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.mode import DeviceMode

__all__ = ["card_now", "mode_now", "note_unmodelled"]


def mode_now() -> DeviceMode:
    """The mode that is entered."""
    return next(mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, DeviceMode))


def card_now() -> Card:
    """The card that ops run on."""
    return mode_now().card


def note_unmodelled(op: str, what: str) -> None:
    """Note what is not known of an op."""
    mode_now().unmodelled.setdefault(op, what)
