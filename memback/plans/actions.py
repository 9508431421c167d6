"""A plan: what is run, kept, dropped and reversed, in order, over a chain of stages or a graph of nodes.

Stage i reads activation i and makes activation i + 1; activation 0 is the chain's input. Three actions say all that a
schedule does (Griewank & Walther 2000; Herrmann, Beaumont et al., "Optimal checkpointing for heterogeneous chains",
arXiv 1911.13214, whose F_none, F_ck, F_all and B are ``Forward`` with each :class:`Keep`, and ``Backward``).
:mod:`memback.plans.simulate` says what each needs and leaves behind.

Of a graph, nodes are computed, values discarded, and nodes reversed: :mod:`memback.plans.graph` says the same of these.
"""

from __future__ import annotations

import enum
import re
from typing import Any, TypeAlias

import msgspec

from memback.errors import UsageError
from memback.plans.data import Data

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


class _TaggedAction(Data, frozen=True, tag_field="do", tag=str.lower, omit_defaults=False):
    """An action; its name is what it does."""


class Forward(_TaggedAction, frozen=True):
    """Run a stage forward."""

    stage: int
    keep: Keep

    def __str__(self) -> str:
        return f"forward of stage {self.stage}, keeping {'its ' * (self.keep is Keep.INPUT)}{self.keep}"


class Backward(_TaggedAction, frozen=True):
    """Run a stage's backward from its input, saves, output and dL/d(output), which it uses up."""

    stage: int

    def __str__(self) -> str:
        return f"backward of stage {self.stage}"


class Drop(_TaggedAction, frozen=True):
    """Drop a stored value of a stage before its backward."""

    stage: int
    stored: Stored

    def __str__(self) -> str:
        return f"drop the {self.stored} of stage {self.stage}"


Action: TypeAlias = Forward | Backward | Drop


class Compute(_TaggedAction, frozen=True):
    """Run a node of a graph; with ``saves`` it also leaves the residuals that its own backward needs."""

    node: int
    saves: bool = False

    def __str__(self) -> str:
        return f"computation of node {self.node}{', with its saves' * self.saves}"


class Reverse(_TaggedAction, frozen=True):
    """Run a node's backward from the values that it needs; its own output and saves are dropped with it."""

    node: int

    def __str__(self) -> str:
        return f"backward of node {self.node}"


class Discard(_TaggedAction, frozen=True):
    """Store a value of a node no longer."""

    node: int
    stored: Stored = Stored.OUTPUT

    def __str__(self) -> str:
        return f"discarding the {self.stored} of node {self.node}"


GraphAction: TypeAlias = Compute | Reverse | Discard


class GraphPlan(Data, frozen=True):
    """A schedule of a graph and what it takes, as a chain's :class:`Plan` has them.

    ``gap`` is by how much, at most, the cost is above the least one over the graph's fixed order, as a share of that;
    None where nothing is known of it.
    """

    actions: tuple[GraphAction, ...]
    cost: int | float
    peak_bytes: int
    optimality: str
    gap: float | None = None


class Plan(Data, frozen=True):
    """A schedule and what it takes.

    ``cost`` is that of every forward and backward, in the stages' unit; ``peak_bytes`` is the largest number of live
    bytes at any moment, as :func:`memback.plans.simulate` counts them; ``optimality`` says what is proved of it.
    """

    actions: tuple[Action, ...]
    cost: int | float
    peak_bytes: int
    optimality: str

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data, for JSON."""
        return {**msgspec.to_builtins(self), "actions": msgspec.to_builtins([*self.actions])}

    @staticmethod
    def from_dict(data: Any) -> Plan:
        """Read what :meth:`to_dict` wrote. Whether its numbers hold for a chain, ``simulate`` says.

        Raises:
            UsageError: it is not the data of a plan; the message names the first entry that is wrong.
        """
        try:
            return msgspec.convert(data, Plan)
        except msgspec.ValidationError as error:
            raise UsageError(_wrong(data, str(error))) from None


def _wrong(data: Any, error: str) -> str:
    """The message for data that is no plan, from msgspec's own."""
    found = re.search(r"`\$\.actions\[(\d+)\](?:\.(\w+))?`$", error)
    if found is None:
        return f"the plan must be an object with exactly {', '.join(Plan.__struct_fields__)}: {error}"
    index, name = int(found[1]), found[2]
    where, action = f"action {index} of the plan", data["actions"][index]
    kinds = {"stage": "a whole number", "keep": f"one of {', '.join(Keep)}", "stored": f"one of {', '.join(Stored)}"}
    if name in kinds:
        return f"{name!r} of {where} must be {kinds[name]}, not {action[name]!r:.200}"
    forms = "do, stage, keep (forward), do, stage (backward) or do, stage, stored (drop)"
    return f"{where} must be an object with exactly {forms}, not {action!r:.200}"
