"""What a training step's peak on a card is made up of: parameters, gradients, optimiser state, activations, ..."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from memback.bridges.torch.device.blocks import Segment
from memback.bridges.torch.device.cards import CONTEXT_BYTES, Card
from memback.bridges.torch.device.memory import Memory
from memback.bridges.torch.device.replay import Alloc, Event, Free, Mark, Peak, Replay, replay
from memback.bridges.torch.device.trace import Asked, GivenBack, Reset
from memback.bridges.torch.recording.storages import storages, tensors
from memback.profiling.report import DevicePeak, DeviceSegment

__all__ = ["MakeUp", "of_peak", "picture"]

_FREE = "free"


class MakeUp:
    """Sees in the course of training steps what memory is for.

    Args:
        memory: the card's.
        module: whose parameters and buffers are on the card.
        inputs: of the module, on the card.
    """

    def __init__(self, memory: Memory, module: torch.nn.Module, inputs: Any) -> None:
        self._memory = memory
        self._roles: dict[int, str] = {}
        self._note("inputs", tensors(inputs))
        self._note("buffers", module.buffers())
        self._note("parameters", module.parameters())
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.is_leaf:
                parameter.register_post_accumulate_grad_hook(self._has_gradient)

    def replayed(self, state: Any, card: Card | None = None) -> Replay:
        """The steps so far, once more, with what each block is for: on a card, or on one whose memory always suffices.

        ``state`` is the optimiser's. The steps are the phases ``1``, ``2``, ...
        """
        self._note("optimizer_state", tensors(state))
        other = 0 if card is None else CONTEXT_BYTES
        return replay(list(self._events()), card, other_bytes=other)

    def _note(self, role: str, given: Iterable[torch.Tensor]) -> None:
        for tensor in given:
            for storage in storages(tensor):
                number = self._memory.number_of(storage)
                if number is not None:
                    self._roles[number] = role

    def _has_gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self._note("gradients", [parameter.grad])

    def _events(self) -> Iterator[Event]:
        trace = self._memory.allocator.trace
        roles = {**dict(_told_by_time(trace)), **self._roles}
        steps = 0
        for one in trace:
            match one:
                case Asked():
                    yield Alloc(one.number, one.size, roles[one.number])
                case GivenBack():
                    yield Free(one.number)
                case Reset():
                    steps += 1
                    yield Mark(str(steps))


def _told_by_time(trace: Sequence[Asked | GivenBack | Reset]) -> Iterator[tuple[int, str]]:
    """What memory is for that is none of the module's or the optimiser's, by when it is asked for and given back.

    What a forward pass makes and leaves for backward is an activation, what backward makes the gradient of one. What is
    no tensor's and never given back is a library's. All else is workspace.
    """
    lasting = {one.number: one for one in trace if isinstance(one, Asked) and not one.storage}
    made: dict[int, Asked] = {}
    for one in trace:
        if isinstance(one, Asked):
            if one.backward:
                yield from ((number, "activations") for number in made)  # which backward finds there
                made.clear()
            if one.forward:
                made[one.number] = one
            yield one.number, "gradients" if one.backward and one.storage and not one.forward else "workspace"
        elif isinstance(one, GivenBack):
            lasting.pop(one.number, None)
            if one.backward:
                yield from ((number, "activations") for number in made)
                made.clear()
            made.pop(one.number, None)
    yield from ((number, "libraries") for number in lasting)


def of_peak(peak: Peak) -> DevicePeak:
    """What a phase's peak is made up of."""
    sizes: Counter[str] = Counter()
    for segment in peak.segments:
        for block in segment.blocks:
            if block.in_use:
                sizes[block.owner] += block.size
    return DevicePeak(**sizes, fragmentation=peak.reserved_bytes - peak.allocated_bytes)


def picture(segments: Iterable[Segment]) -> tuple[DeviceSegment, ...]:
    """Segments, with neighbouring blocks for the same taken together."""
    return tuple(
        DeviceSegment(
            pool="small" if segment.pool == "small" else "large",
            blocks=tuple(
                (role, sum(block.size for block in blocks))
                for role, blocks in groupby(segment.blocks, lambda b: b.owner if b.in_use else _FREE)
            ),
        )
        for segment in segments
    )
