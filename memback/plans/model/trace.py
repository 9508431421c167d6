"""The calls of a step from a dry run: their inputs, what they keep, and where the graph can be cut.

A *boundary* between two calls is a cut where one activation alone is used further on, one that some call keeps anyway:
the calls between two cuts are a stage of a chain. A stretch without such cuts (a U-Net, whose skip connections lead
past everything; the time steps of an LSTM) is cut where the least is used further on; what then is used beyond the next
stage is *lasting*: always stored, so that what remains is a chain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from memback.engine.arrays import buffer_bytes, leaves, root
from memback.engine.node import Edge
from memback.engine.replay import Replay
from memback.engine.state import State
from memback.engine.tensor import Tensor
from memback.plans.model.region import Selection
from memback.plans.model.replay import CallShape

__all__ = ["StageLayout", "Trace", "TracedCall"]

_SHARE = 0.25
"""A stretch without cuts that holds more than this share of all saved bytes is divided further."""


@dataclass(frozen=True)
class TracedCall:
    """A call: what it must be, the calls whose outputs it uses, its buffers (by number), and its forward's FLOPs.

    ``made`` are the buffers that its outputs live in, those in ``fresh`` were not there before; ``residuals`` are the
    buffers of the residuals that it keeps, ``saved`` all that it keeps, ``leaves`` the parameters (by id) that it gives
    gradients to, with the gradients' bytes.
    """

    shape: CallShape
    uses: frozenset[int]
    made: frozenset[int]
    fresh: frozenset[int]
    residuals: frozenset[int]
    saved: frozenset[int]
    leaves: tuple[tuple[int, int], ...]
    flops: int
    matrix_product: bool


class Trace(Replay):
    """Records a region that keeps everything. It refers to every buffer, so that each has a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[TracedCall] = []
        self.buffers: list[int] = []
        """Bytes of each buffer."""
        self.outputs: frozenset[int] = frozenset()
        """The calls that made what the region returns."""
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._own: set[int] = set()
        self.segments: list[tuple[int, int, frozenset[str]]] = []
        """(first call, one past the last, ops whose outputs are kept) of each segment that the model recomputes."""
        self._in_segment = False

    @contextmanager
    def segment(self, keep: Collection[str]) -> Iterator[None]:
        outermost, start = not self._in_segment, self.count
        self._in_segment = True
        yield
        if outermost:
            self._in_segment = False
            if self.count > start:
                self.segments.append((start, self.count, frozenset(keep)))

    def reach(self, number: int, state: State, retain: bool) -> None:
        return

    def add(self, node: Any, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> None:
        op, edges = node.op, node.edges
        uses = frozenset(source[0] for edge in edges if (source := self.source(edge, None)) is not None)
        for value in op.input_arrays(values):
            for array in leaves(value):
                self._number(array)
        known = len(self.buffers)
        made = frozenset(self._number(o) for o in (out if op.multiple else (out,)))
        fresh = frozenset(buffer for buffer in made if buffer >= known)
        known = len(self.buffers)
        for residual in residuals:
            for array in leaves(residual):
                self._number(array)
        residual_buffers = frozenset(range(known, len(self.buffers)))
        self._own |= fresh | residual_buffers
        saved = frozenset(self._number(array) for _, value in node.saved() for array in leaves(value)) & self._own
        self.calls.append(
            TracedCall(
                CallShape.of(op, node.path, out),
                uses,
                made,
                fresh,
                residual_buffers & saved,
                saved,
                tuple(_leaves(edges)),
                op.count_flops(values, out),
                op.matrix_product,
            )
        )
        super().add(node, values, out, residuals)

    def returned(self, tensors: Iterable[Tensor]) -> None:
        """Note what the region returns."""
        sources = (self.source(tensor.node, None) for tensor in tensors)
        self.outputs = frozenset(source[0] for source in sources if source is not None)

    def release(self) -> None:
        """Drop the buffers, whose sizes have been recorded."""
        self._numbers.clear()
        self._alive.clear()

    def _number(self, array: Any) -> int:
        buffer = root(array)
        number = self._numbers.get(id(buffer))
        if number is None:
            number = self._numbers[id(buffer)] = len(self.buffers)
            self.buffers.append(buffer_bytes(buffer))
            self._alive.append(buffer)
        return number

    def bytes_of(self, buffers: Iterable[int]) -> int:
        """Bytes of distinct buffers."""
        return sum(self.buffers[b] for b in set(buffers))


def _leaves(edges: Sequence[Edge | None]) -> Iterable[tuple[int, int]]:
    for edge in edges:
        if isinstance(edge, Tensor):
            yield id(edge), edge.data.nbytes


class StageLayout:
    """A traced region cut into stages: at ``bounds``, by default as the module's text says.

    Attributes:
        bounds, crossing, lasting: as in :class:`memback.plans.model.region.Region`. Nothing crosses the last
        boundary: what
            comes after the region follows it at once, is run once, and belongs to its last stage.
    """

    def __init__(self, trace: Trace, bounds: Sequence[int] | None = None) -> None:
        self.trace = trace
        self.calls = trace.calls
        n = len(self.calls)
        self._last = list(range(n))
        for number, call in enumerate(self.calls):
            for used in call.uses:
                self._last[used] = number
        for number in trace.outputs:
            self._last[number] = n
        self.saved = frozenset().union(*(call.saved for call in self.calls))
        self.bounds = tuple(bounds or self._choose_bounds())
        stage_of = [i for i, (a, b) in enumerate(pairwise(self.bounds)) for _ in range(a, b)]
        stage_of.append(len(self.bounds) - 1)
        across = {k: stage_of[last] for k, last in enumerate(self._last) if stage_of[last] > stage_of[k]}
        first = self._first_beyond(stage_of)
        self.lasting = {k: first.get(k, last) for k, last in across.items() if last > stage_of[k] + 1}
        crossing = [
            frozenset(k for k in across if stage_of[k] + 1 == i and k not in self.lasting)
            for i in range(len(self.bounds) - 1)
        ]
        self.crossing = (*crossing, frozenset[int]())

    def _first_beyond(self, stage_of: Sequence[int]) -> dict[int, int]:
        """By call, the first stage after its own that uses its output: the last one that backward comes to."""
        first: dict[int, int] = {}
        for number, call in enumerate(self.calls):
            for used in call.uses:
                if stage_of[number] > stage_of[used]:
                    first.setdefault(used, stage_of[number])
        return first

    # -- where to cut

    @cached_property
    def _across(self) -> list[frozenset[int]]:
        """By position, the buffers that are made before it and used from it on."""
        alive: set[int] = set()
        ending: dict[int, list[int]] = {}
        for number, last in enumerate(self._last):
            ending.setdefault(last, []).append(number)
        across = []
        counts: dict[int, int] = {}
        for position in range(len(self.calls) + 1):
            across.append(frozenset(alive))
            if position == len(self.calls):
                break
            if self._last[position] > position:
                for buffer in self.calls[position].made:
                    counts[buffer] = counts.get(buffer, 0) + 1
                    alive.add(buffer)
            for number in ending.get(position, ()):
                if number == position:
                    continue
                for buffer in self.calls[number].made:
                    counts[buffer] -= 1
                    if not counts[buffer]:
                        alive.discard(buffer)
        return across

    def _choose_bounds(self) -> list[int]:
        across, n = self._across, len(self.calls)
        cuts = [0]
        before: frozenset[int] = frozenset()
        for position in range(1, n):
            here = across[position]
            if len(here) == 1 and here <= self.saved and here != before:
                cuts.append(position)
                before = here
        cuts.append(n)
        whole = max(self.trace.bytes_of(self.saved), 1)
        bounds = [0]
        for start, stop in pairwise(cuts):
            saved = self.trace.bytes_of(b for call in self.calls[start:stop] for b in call.saved)
            if saved > _SHARE * whole and stop - start > 2:
                bounds += self._narrowest(start, stop)
            bounds.append(stop)
        return bounds

    def _narrowest(self, start: int, stop: int) -> list[int]:
        """Where least is used further on, inside a stretch without cuts."""
        widths = [self.trace.bytes_of(self._across[p]) for p in range(start, stop + 1)]
        found = []
        for position in range(start + 1, stop):
            here, left, right = widths[position - start], widths[position - start - 1], widths[position - start + 1]
            newest = self.calls[position - 1].made & self._across[position]
            if here <= left and here < right and newest and newest <= self.saved:
                found.append(position)
        return found

    # -- what to keep of a stage

    @cached_property
    def activations(self) -> list[frozenset[int]]:
        """The buffers that cross each boundary, besides lasting ones."""
        return [self._made(crossing) - self.lasting_buffers for crossing in self.crossing]

    @cached_property
    def lasting_buffers(self) -> frozenset[int]:
        """The buffers of lasting activations."""
        return self._made(self.lasting)

    def _made(self, numbers: Iterable[int]) -> frozenset[int]:
        return frozenset(buffer for number in numbers for buffer in self.calls[number].made)

    def calls_of(self, stage: int) -> range:
        """The numbers of a stage's calls."""
        return range(self.bounds[stage], self.bounds[stage + 1])

    def saved_of(self, stage: int, selection: Selection | None = None) -> frozenset[int]:
        """The buffers that a kept stage holds besides its input, its output and lasting ones."""
        numbers = self.calls_of(stage) if selection is None else selection.filled
        saved = frozenset().union(*(self.calls[number].saved for number in numbers))
        if selection is not None:
            saved |= self._made(selection.stored)
        return saved - self.activations[stage] - self.activations[stage + 1] - self.lasting_buffers
