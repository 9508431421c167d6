"""A module and its inputs on a card, without memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_with_path

from memback.bridges.torch.device import kernels  # noqa: F401 - it fills the tables
from memback.bridges.torch.device.autocast import autocasting
from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.cuda import answering_for
from memback.bridges.torch.device.mode import CUDA, DeviceMode
from memback.bridges.torch.device.recurrent import lie_flat
from memback.bridges.torch.device.registry import composites_taken_apart
from memback.bridges.torch.recording.fake import as_it_was, exchanged_input
from memback.bridges.torch.recording.leftovers import put_back
from memback.bridges.torch.recording.step import Place

__all__ = ["OnCard", "entered", "on_card", "place_on"]

_OF_FAKES = (
    "fake_mode",
    "fake_device",
    "constant",
    "real_tensor",
    "pytype",
    "dispatch_keys",
    "_post_accumulate_grad_hooks",
)


class OnCard:
    """What stands for a module's tensors on a card."""

    def __init__(self, mode: DeviceMode) -> None:
        self.mode = mode
        self.known: dict[int, tuple[Any, torch.Tensor]] = {}

    def stand_in(self, tensor: Any) -> Any:
        """What stands for a tensor; whatever is none stays."""
        if not isinstance(tensor, torch.Tensor):
            return tensor
        if id(tensor) not in self.known:
            made = self._made(tensor)
            self.known[id(tensor)] = (tensor, made)
            _give_hooks(made, tensor)
        return self.known[id(tensor)][1]

    def exchange(self, others: Mapping[int, Any]) -> None:
        """Have others stand where stand-ins did, by the ids of these."""
        for number, (tensor, made) in self.known.items():
            if id(made) in others:
                self.known[number] = (tensor, others[id(made)])

    def _made(self, tensor: torch.Tensor) -> torch.Tensor:
        made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=CUDA)
        without = isinstance(tensor, FakeTensor) or tensor.is_meta
        if not (without or tensor.is_floating_point() or tensor.is_complex()):
            self.mode.give_value(made, tensor.detach())
        if isinstance(tensor, nn.Parameter):
            made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            own = {
                name: value for name, value in vars(tensor).items() if name not in _OF_FAKES and name not in vars(made)
            }
            vars(made).update(own)
            return made
        return made.requires_grad_(tensor.requires_grad)


def _give_hooks(made: Any, tensor: Any) -> None:
    """Have the hooks of a leaf be run for what stands for it, too."""
    if tensor.is_leaf and tensor.requires_grad:
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            if hooks := getattr(tensor, name):
                setattr(made, name, hooks.copy())


def place_on(card: Card) -> Place:
    """Where a step is run dry as on a card."""

    @contextmanager
    def place(module: nn.Module, inputs: Any, *others: Any) -> Iterator[tuple[nn.Module, Any]]:
        with on_card(card, module, inputs, others) as (_, given):
            yield module, given

    return place


@contextmanager
def on_card(card: Card, module: nn.Module, inputs: Any, others: Sequence[Any] = ()) -> Iterator[tuple[OnCard, Any]]:
    """In the block a module and its inputs are on a card, and every op is run as there.

    Gives what stands for what, and the inputs in the same nesting.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    mode = DeviceMode(fake, card)
    there = OnCard(mode)
    with as_it_was(module), put_back(mode, module, inputs, *others), entered(card, fake, mode):
        _exchange(module, there)
        made = tree_map_with_path(lambda path, value: there.stand_in(exchanged_input(lambda v: v, path, value)), inputs)
        yield there, made


@contextmanager
def entered(card: Card, fake: FakeTensorMode, mode: DeviceMode) -> Iterator[None]:
    """In the block every op is run as on the card."""
    with answering_for(card), composites_taken_apart(), autocasting(), fake, mode:
        yield


def _exchange(module: nn.Module, there: OnCard) -> None:
    """Move tensors in the order in which ``Module.to`` does."""
    for child in module.children():
        _exchange(child, there)
    for members in (module._parameters, module._buffers):
        members.update({name: there.stand_in(tensor) for name, tensor in members.items()})
    if isinstance(module, nn.RNNBase):
        there.exchange(lie_flat(module))
