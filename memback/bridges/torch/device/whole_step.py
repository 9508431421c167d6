"""Any code that trains once, on a card: the tensors that it works with are exchanged for such of the card in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.swa_utils import AveragedModel

from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.exchange import OnCard, entered
from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.recording.found import Found
from memback.bridges.torch.recording.leftovers import put_back
from memback.bridges.torch.recording.restoring import other_streams_kept
from memback.bridges.torch.recording.storages import key
from memback.bridges.torch.recording.swapping import swapped

__all__ = ["on_card_in_place", "there_before"]

_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer, FakeTensor)


def there_before(card: Card, found: Found, step: Callable[[], object]) -> list[torch.Tensor]:
    """Of the other tensors that a step works with, those that it takes to be on the card already.

    The others it moves there itself, or never does. Told by a trial: on the card already is what an op takes together
    with a tensor of the card; or, where that is computed from others first, all that the step does not move.
    """
    apart = [tensor for tensor in found.others if tensor.requires_grad or tensor.is_meta]
    if len(apart) == len(found.others):
        return apart
    with on_card_in_place(card, found, apart, step) as (mode, _):
        mode.assumed = 1.0
        step()
        met = {key(tensor.untyped_storage()) for tensor in mode.met_outside() if tensor.dim()}
        sent = set(mode.sent)
    known = {key(tensor.untyped_storage()): tensor for tensor in found.others if tensor.layout is torch.strided}
    there = (met if met <= set(known) else set(known)) - sent
    chosen = {id(tensor) for tensor in apart} | {id(tensor) for number, tensor in known.items() if number in there}
    return [tensor for tensor in found.others if id(tensor) in chosen]


@contextmanager
def on_card_in_place(
    card: Card, found: Found, others: list[torch.Tensor], *roots: Any
) -> Iterator[tuple[DeviceMode, Callable[[], None]]]:
    """In the block what a step works with is on a card, and every op is run as there; afterwards all is as before.

    Args:
        card: the card.
        found: what the step works with.
        others: of its other tensors, those that are on the card, too.
        roots: what leads to everything that the step may change: functions, arguments.

    Gives the mode, and a function to be called after each step, which lets go of what nobody else holds any more.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    mode = DeviceMode(fake, card)
    with put_back(mode, roots, found.root, *found.optimizers, wholly=True) as let_go, other_streams_kept():
        there = OnCard(mode)
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            with torch.random.fork_rng([]), entered(card, fake, mode):
                pairs.extend((tensor, _with_gradient(there, tensor)) for tensor in _in_order(found, others))
                with swapped(pairs):
                    yield mode, let_go
        finally:
            pairs.clear()
            there.known.clear()
            mode.let_go()


def _with_gradient(there: OnCard, tensor: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = there.stand_in(tensor)
    if tensor.is_leaf and tensor.grad is not None:
        made.grad = there.stand_in(tensor.grad)
    return made


def _in_order(found: Found, others: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors that are on the card, each once, in the order in which a script would have moved them there."""
    met: set[int] = set()
    state = (tensor for optimizer in found.optimizers for tensor in _on_the_card(optimizer))
    masters = (tensor for _, tensor in found.parameters())
    for tensor in (*_of_module(found.root), *masters, *state, *others):
        if id(tensor) not in met and type(tensor) in _PLAIN:
            met.add(id(tensor))
            yield tensor


def _of_module(module: nn.Module) -> Iterator[torch.Tensor]:
    """As ``Module.to`` goes through them."""
    for child in module.children():
        yield from _of_module(child)
    apart = "n_averaged" if isinstance(module, AveragedModel) else None  # a number that it leaves on the CPU
    for members in (module._parameters, module._buffers):
        yield from (tensor for name, tensor in members.items() if tensor is not None and name != apart)


def _on_the_card(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """The state of an optimiser but for what it keeps on the CPU: numbers of steps, unless a kernel is to read them."""
    read = {
        id(parameter)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }
    for parameter, state in optimizer.state.items():
        for name, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, torch.Tensor) and (name != "step" or id(parameter) in read):
                yield value
