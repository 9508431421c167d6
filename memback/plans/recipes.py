"""Calls of a planned region on the tape: what they must be, how they are made again, and what is stored of them.

A call that does not keep what its backward needs is recorded *lean*: with a recipe (the op, its attributes, which
earlier calls made its inputs, its place in the random stream) instead of saved values.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from memback.arrays import dtype_name, leaves, stand_in
from memback.op import Op
from memback.state import State
from memback.tape import Edge, MultiNode, Node, changes

__all__ = ["LEAN", "CallShape", "Held", "PlannedCall", "PlannedMultiCall", "Recipe", "keeps_its_own", "saved_places"]


class Owner(Protocol):
    """The run of a region, as its calls see it."""

    def source(self, edge: Edge | None) -> tuple[int, int | None] | None:
        """(number of the call, index among its outputs if it has several) of an input that was made in the region."""

    def reach(self, number: int, state: State, retain: bool) -> None:
        """Have what a call keeps filled in: its backward is next."""


class _Lean(tuple[Any, ...]):
    """What a call keeps that was recorded lean: nothing yet."""


LEAN = _Lean()


class Recipe:
    """How a call is made again: its values without those that earlier calls made, and which calls those are.

    ``sources`` has an entry (place among the values, number of the call, index among its outputs or None where it has
    one) for each of these; in a variadic op the place is one among its items. ``shapes`` has shape and dtype of these
    inputs, ``outs`` of the outputs; ``arrays`` are the other inputs.
    """

    __slots__ = ("arrays", "draws", "outs", "seed", "shapes", "sources", "values")

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
            source = owner.source(edge)
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
        self.arrays = [a for value in items for a in leaves(value)]
        self.outs = [(o.shape, o.dtype) for o in (out if op.multiple else (out,))]
        self.seed, self.draws = random

    def bind(self, op: Op, given: Callable[[int, int | None], Any], needed: Container[int] | None) -> list[Any]:
        """The call's values: inputs from earlier calls, (number, index), as ``given`` has them.

        Only those at the places ``needed`` where not all are; an array of a few bytes stands in for the others.
        """
        values = list(self.values)
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
        """The output's shape and dtype in a few bytes, for a call whose output nobody looks at."""
        made = tuple(stand_in(shape, dtype) for shape, dtype in self.outs)
        return made if multiple else made[0]


class PlannedCall(Node):
    """A call in a planned region: the region's execution, the call's number in it, and how it is made again."""

    __slots__ = ("execution", "index", "recipe")

    execution: Owner | None
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
        lean = self.kept is LEAN and self.recipe is not None
        return self._inputs() if lean else self.saved_arrays()

    def _inputs(self) -> Iterator[tuple[str, Any]]:
        for array in self.recipe.arrays if self.recipe is not None else ():
            yield f"an input of {self.describe()}, which its plan computes again for backward,", array

    def check_inputs(self) -> None:
        """Raise unless the inputs that no call of the region made are unchanged, so that the call can be made again."""
        if changes.clock != self.time:
            self.check_changes(self._inputs())
        self.check_seal()

    def pull(self, state: State, retain: bool) -> list[Any]:
        """Have what the call keeps filled in, if it is not there, and take its output gradient through its op."""
        if self.execution is not None:
            self.execution.reach(self.index, state, retain)
            if not retain:
                self.execution, self.recipe = None, None
        return super().pull(state, retain)

    def forget(self) -> None:
        """Drop everything that is kept, and what the plan stores."""
        super().forget()
        self.execution, self.recipe = None, None


class PlannedMultiCall(PlannedCall, MultiNode):
    """A call with several outputs in a planned region."""

    __slots__ = ()


class Held(Node):
    """What a call gave (a tuple where it has several outputs), as long as the plan stores it."""

    __slots__ = ("out",)

    def __init__(self, call: Node, out: Any) -> None:
        super().__init__(call.op, call.tape, call.path, call.site, None, (), (), None)
        self.out = out

    @property
    def name(self) -> str:
        return "checkpoint"

    @property
    def residuals(self) -> tuple[str, ...]:
        return ()

    def saved(self) -> list[tuple[str, Any]]:
        return [(f"output of {self.op.name}", self.out)]


class CallShape(NamedTuple):
    """What a call in a planned region must be: its op, layer path, and the shapes and dtypes of its outputs."""

    op: str
    path: str
    outputs: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def of(cls, op: Op, path: str, out: Any) -> CallShape:
        """The shape of a call that has run."""
        return cls(op.name, path, tuple((o.shape, dtype_name(o.dtype)) for o in (out if op.multiple else (out,))))

    def matches(self, other: CallShape) -> bool:
        """Whether another call is the same, whatever its layer is called where the model is a part of another one."""
        return self.op == other.op and self.outputs == other.outputs

    def __str__(self) -> str:
        outputs = ", ".join(f"{dtype}[{', '.join(map(str, shape))}]" for shape, dtype in self.outputs)
        return f"{self.op} (layer {self.path or '(top)'!r}) giving {outputs}"


def keeps_its_own(node: Any) -> tuple[bool, bool]:
    """Whether a call keeps its output, and whether it keeps residuals: not every call of an op with some makes them."""
    names = set(node.saving.names)
    keeps_residuals = bool(names & set(node.op.residuals)) and node.op.has_residuals(node.recipe.values)
    return "out" in names, keeps_residuals


def saved_places(node: Any) -> frozenset[int] | range:
    """The inputs that a call keeps, by their places in its recipe."""
    places = frozenset(node.saving.layout[slot] for slot in node.saving.slots)
    if node.op.variadic is None:
        return places
    return range(len(node.op.input_arrays(node.recipe.values))) if node.op.variadic in places else range(0)
