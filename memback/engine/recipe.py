"""Calls of a region on the tape: how each is run again, and what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from memback.engine.arrays import leaves, root, stand_in
from memback.engine.changes import changes
from memback.engine.node import Edge, MultiNode, Node
from memback.engine.op import Op
from memback.engine.packed import is_packed, unpacked
from memback.engine.state import State

__all__ = [
    "LEAN",
    "MultiCall",
    "Recipe",
    "RecordedCall",
    "Source",
    "StoredOutput",
    "StoredResiduals",
    "keeps_own",
    "saved_places",
]


class _Lean(tuple[Any, ...]):
    """What a call keeps that was recorded lean: nothing yet."""


LEAN = _Lean()

Source: TypeAlias = "tuple[int, int | None]"
"""What made an input: (number of the call, index among its outputs, or None where it has one)."""


class Owner(Protocol):
    """The replay of a region, as its calls see it."""

    def source(self, edge: Edge | None, array: Any) -> Source | None: ...

    def reach(self, number: int, state: State, retain: bool) -> None: ...

    def clear(self) -> None: ...


class Recipe:
    """How a call is run again: its values without those that earlier calls made, and which calls those are.

    ``sources`` has an entry (place among the values, number of the call, index among its outputs or None where it has
    one) for each of these; in a variadic op the place is one among its items. ``shapes`` has shape and dtype of these
    inputs, ``outs`` of the outputs.
    """

    __slots__ = ("draws", "outs", "seed", "shapes", "sources", "values")

    def __init__(
        self,
        op: Op,
        values: list[Any],
        edges: Sequence[Edge | None],
        out: Any,
        owner: Owner,
        random: tuple[int, int],
    ) -> None:
        places = range(len(edges)) if op.variadic is not None else [i for _, i in op.array_slots]
        items = list(values[op.variadic]) if op.variadic is not None else list(values)
        self.sources: list[tuple[int, int, int | None]] = []
        self.shapes: list[tuple[tuple[int, ...], Any]] = []
        for place, edge in zip(places, edges, strict=True):
            source = owner.source(edge, items[place])
            if source is not None:
                self.sources.append((place, *source))
                self.shapes.append((items[place].shape, items[place].dtype))
                items[place] = None
        if op.variadic is not None:
            values = [*values]
            values[op.variadic] = items
            self.values: list[Any] = values
        else:
            self.values = items
        self.outs = [(o.shape, o.dtype) for o in (out if op.multiple else (out,))]
        self.seed, self.draws = random

    def bind(self, op: Op, given: Callable[[int, int | None], Any], needed: Container[int] | None) -> list[Any]:
        """The call's values: inputs from earlier calls, (number, index), as ``given`` has them.

        Only those at the places ``needed`` where not all are; an array of a few bytes stands in for the others.
        """
        values = list(map(unpacked, self.values))
        items = values
        if op.variadic is not None:
            items = list(values[op.variadic])
            values[op.variadic] = items
        for (place, number, index), (shape, dtype) in zip(self.sources, self.shapes, strict=True):
            if needed is None or place in needed:
                items[place] = given(number, index)
            else:
                items[place] = stand_in(shape, dtype)
        return values

    def stand_ins(self, multiple: bool) -> Any:
        """The output's shape and dtype in a few bytes, for a call whose output is not looked at."""
        made = tuple(stand_in(shape, dtype) for shape, dtype in self.outs)
        return made if multiple else made[0]


class RecordedCall(Node):
    """A call in a region: the region's replay, the call's number in it, and how it is run again."""

    __slots__ = ("index", "recipe", "replay")

    replay: Owner | None
    index: int
    recipe: Recipe | None

    def saved(self) -> list[tuple[str, Any]]:
        return [] if self.kept is LEAN else super().saved()

    def check(self) -> None:
        if self.kept is not LEAN or self.recipe is None:
            super().check()
        else:
            self.check_inputs()

    def needed(self) -> Iterator[tuple[str, Any]]:
        return self._inputs() if self.kept is LEAN else self.saved_arrays()

    def _inputs(self) -> Iterator[tuple[str, Any]]:
        if self.recipe is None:
            return
        values = self.recipe.values
        moved = {id(root(array)) for array in self.op.moved(values)}
        for name, value in zip(self.op.parameters, values, strict=True):
            for array in leaves(value):
                if id(root(array)) not in moved:
                    yield f"{name!r}, an input of {self.describe()} and needed to recompute it for backward,", array

    def check_inputs(self) -> None:
        """Raise unless the inputs that no call of the region made are unchanged, so that the call can be run again."""
        if changes.clock != self.time:
            self.check_changes(self._inputs())
        self.check_seal()

    def pull(self, state: State, retain: bool) -> list[Any]:
        """Have the replay fill in what the call keeps, and take its output gradient through its op."""
        lean = self.kept is LEAN
        if self.replay is not None:
            self.replay.reach(self.index, state, retain)
            if not retain:
                self.replay, self.recipe = None, None
        grads = super().pull(state, retain)
        if retain and lean:
            self.kept = LEAN  # the next backward recomputes it again
        return grads

    def forget(self) -> None:
        """Drop everything that is kept, and what the program stores."""
        super().forget()
        if self.replay is not None:
            self.replay.clear()
        self.replay, self.recipe = None, None


class MultiCall(RecordedCall, MultiNode):
    """A call with several outputs in a region."""

    __slots__ = ()


class StoredOutput(Node):
    """What is stored of a call, as long as the program says so."""

    __slots__ = ("out",)

    def __init__(self, call: Node, out: Any) -> None:
        super().__init__(call.op, call.tape, call.path, call.site, None, (), (), None)
        self.out = out

    @property
    def name(self) -> str:
        return "checkpoint"

    @property
    def residuals(self) -> tuple[str, ...]:
        return tuple(name for name, value in self.saved() if is_packed(value))

    def saved(self) -> list[tuple[str, Any]]:
        return [(f"output of {self.op.name}", self.out)]


class StoredResiduals(StoredOutput):
    """The residuals of a call, None for those that its backward does not need."""

    __slots__ = ()

    def __init__(self, call: Any, residuals: tuple[Any, ...]) -> None:
        wanted = set(call.saving.names)
        kept = tuple(r if name in wanted else None for name, r in zip(call.op.residuals, residuals, strict=True))
        super().__init__(call, kept)

    @property
    def residuals(self) -> tuple[str, ...]:
        return self.op.residuals

    def saved(self) -> list[tuple[str, Any]]:
        return [(name, r) for name, r in zip(self.op.residuals, self.out, strict=True) if r is not None]


def keeps_own(call: Any) -> tuple[bool, bool]:
    """Whether a call keeps its output, and whether it keeps residuals: not every call of an op with some makes them."""
    names = set(call.saving.names)
    keeps_residuals = bool(names & set(call.op.residuals)) and call.op.has_residuals(call.recipe.values)
    return "out" in names, keeps_residuals


def saved_places(call: Any) -> Container[int]:
    """The inputs that a call keeps, by their places in its recipe."""
    places = frozenset(call.saving.layout[slot] for slot in call.saving.slots)
    if call.op.variadic is None:
        return places
    return range(len(call.op.input_arrays(call.recipe.values))) if call.op.variadic in places else range(0)
