"""A plan: what is run, kept, dropped and reversed, in order, over a chain of stages or a graph of nodes.

Stage i reads activation i and makes activation i + 1; activation 0 is the chain's input. Three actions say all that a
schedule does (Griewank & Walther 2000; Herrmann, Beaumont et al., "Optimal checkpointing for heterogeneous chains",
arXiv 1911.13214, whose F_none, F_ck, F_all and B are ``Forward`` with each :class:`Keep`, and ``Backward``).
:mod:`memback.plans.simulate` says what each needs and leaves behind.

Of a graph, nodes are computed, values discarded, and nodes reversed: :mod:`memback.plans.graph` says the same of these.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from memback.errors import UsageError

__all__ = [
    "Action",
    "Backward",
    "Compute",
    "Discard",
    "Drop",
    "Forward",
    "GraphAction",
    "GraphPlan",
    "Keep",
    "Plan",
    "Reverse",
    "Stored",
]


_E = TypeVar("_E", bound=enum.StrEnum)


class Keep(enum.StrEnum):
    """What a forward leaves in memory besides the stage's output."""

    NOTHING = "nothing"
    """F_none: the stage's input is dropped once it has been read."""
    INPUT = "input"
    """F_ck: the stage's input stays, so that the stage can be run again: a checkpoint."""
    EVERYTHING = "everything"
    """F_all: the stage's input and its saves stay, so that its backward can run."""


class Stored(enum.StrEnum):
    """What can be dropped of a stage that has run."""

    OUTPUT = "output"
    SAVES = "saves"


@dataclass(frozen=True, slots=True)
class Forward:
    """Run a stage forward."""

    stage: int
    keep: Keep

    def __str__(self) -> str:
        return f"forward of stage {self.stage}, keeping {'its ' * (self.keep is Keep.INPUT)}{self.keep}"


@dataclass(frozen=True, slots=True)
class Backward:
    """Run a stage's backward from its input, saves, output and dL/d(output), which it uses up."""

    stage: int

    def __str__(self) -> str:
        return f"backward of stage {self.stage}"


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop a stored value of a stage before its backward."""

    stage: int
    stored: Stored

    def __str__(self) -> str:
        return f"drop the {self.stored} of stage {self.stage}"


Action: TypeAlias = Forward | Backward | Drop


@dataclass(frozen=True, slots=True)
class Compute:
    """Run a node of a graph; with ``saves`` it also leaves the residuals that its own backward needs."""

    node: int
    saves: bool = False

    def __str__(self) -> str:
        return f"computation of node {self.node}{', with its saves' * self.saves}"


@dataclass(frozen=True, slots=True)
class Reverse:
    """Run a node's backward from the values that it needs; its own output and saves are dropped with it."""

    node: int

    def __str__(self) -> str:
        return f"backward of node {self.node}"


@dataclass(frozen=True, slots=True)
class Discard:
    """Store a value of a node no longer."""

    node: int
    stored: Stored = Stored.OUTPUT

    def __str__(self) -> str:
        return f"discarding the {self.stored} of node {self.node}"


GraphAction: TypeAlias = Compute | Reverse | Discard


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """A schedule of a graph and what it takes, as a chain's :class:`Plan` has them.

    ``gap`` is by how much, at most, the cost is above the least one over the graph's fixed order, as a share of that;
    None where nothing is known of it.
    """

    actions: tuple[GraphAction, ...]
    cost: float
    peak_bytes: int
    optimality: str
    gap: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule and what it takes.

    ``cost`` is that of every forward and backward, in the stages' unit; ``peak_bytes`` is the largest number of live
    bytes at any moment, as :func:`memback.plans.simulate` counts them; ``optimality`` says what is proved of it.
    """

    actions: tuple[Action, ...]
    cost: float
    peak_bytes: int
    optimality: str

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for JSON."""
        return {
            "actions": [_to_dict(action) for action in self.actions],
            "cost": self.cost,
            "peak_bytes": self.peak_bytes,
            "optimality": self.optimality,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Plan:
        """Read what :meth:`to_dict` wrote. Whether its numbers hold for a chain, ``simulate`` says.

        Raises:
            UsageError: it is not the data of a plan; the message names the first entry that is wrong.
        """
        _check("the plan", data, {"actions": list, "cost": (int, float), "peak_bytes": int, "optimality": str})
        actions = tuple(_from_dict(index, action) for index, action in enumerate(data["actions"]))
        return Plan(actions, data["cost"], data["peak_bytes"], data["optimality"])


def _to_dict(action: Action) -> dict[str, Any]:
    match action:
        case Forward(stage, keep):
            return {"do": "forward", "stage": stage, "keep": keep.value}
        case Backward(stage):
            return {"do": "backward", "stage": stage}
        case Drop(stage, stored):
            return {"do": "drop", "stage": stage, "stored": stored.value}


def _from_dict(index: int, data: Any) -> Action:
    where = f"action {index} of the plan"
    match data:
        case {"do": "forward"}:
            _check(where, data, {"do": str, "stage": int, "keep": str})
            return Forward(data["stage"], _member(where, "keep", data["keep"], Keep))
        case {"do": "backward"}:
            _check(where, data, {"do": str, "stage": int})
            return Backward(data["stage"])
        case {"do": "drop"}:
            _check(where, data, {"do": str, "stage": int, "stored": str})
            return Drop(data["stage"], _member(where, "stored", data["stored"], Stored))
    raise UsageError(f"{where} must be an object whose 'do' is forward, backward or drop, not {data!r}")


def _check(where: str, data: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    if not isinstance(data, Mapping) or set(data) != set(kinds):
        raise UsageError(f"{where} must be an object with exactly {', '.join(kinds)}, not {data!r:.200}")
    for name, kind in kinds.items():
        if not isinstance(data[name], kind) or isinstance(data[name], bool):
            raise UsageError(f"{name!r} of {where} has a value of the wrong kind: {data[name]!r:.200}")


def _member(where: str, name: str, value: str, kind: type[_E]) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{name!r} of {where} must be one of {', '.join(kind)}, not {value!r}") from None
