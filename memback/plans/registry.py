"""Every planner by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from memback.errors import UsageError, shorten
from memback.plans.actions import Plan
from memback.plans.chain import exact, persistent, revolve, uniform
from memback.plans.stage import Stage
from memback.units import parse_count

__all__ = ["PLANNERS", "WHOLE", "Planner", "planner"]


class Planner(Protocol):
    """What makes a plan for a chain of stages."""

    def __call__(self, stages: Sequence[Stage], budget: int, input_bytes: int = 0) -> Plan:
        """The planner's plan for a chain whose input takes ``input_bytes``, with a peak within the budget (bytes).

        Raises:
            BudgetError: none fits; ``minimum_bytes`` is the least budget for which one does.
            UsageError: there is no stage, the chain is not one for this planner, or ``input_bytes`` is negative.
        """


PLANNERS: dict[str, Planner] = {
    "chain": persistent.solve,
    "exact": exact.solve,
    "revolve": revolve.solve,
    "uniform": uniform.solve,
    "sqrt": uniform.sqrt,
    "all": uniform.everything,
}
"""Every planner of chains by name; the first line of its docstring says what it does."""

WHOLE: dict[str, str] = {
    "auto": "The cheaper of the plans that graph (for a small model) and chain find; the default for a model's step.",
    "graph": "The cheapest schedule of a small model's single calls over their order, by mixed-integer programming.",
}
"""Planners of whole models, which see their calls and not a chain of stages, and what they do."""


def planner(name: str) -> Planner:
    """The planner of a name: one of ``PLANNERS``, or ``uniform:k`` for segments of k stages.

    Raises:
        UsageError: there is no such planner, or k is not a whole number from 1 up.
    """
    kind, colon, argument = name.partition(":")
    if kind not in PLANNERS or (colon and kind != "uniform"):
        known = ", ".join("uniform[:k]" if known == "uniform" else known for known in PLANNERS)
        raise UsageError(
            f"unknown planner {shorten(repr(name))}; there are {known}, and for whole models {', '.join(WHOLE)}"
        )
    if not colon:
        return PLANNERS[kind]
    length = parse_count(argument)
    if length is None:
        raise UsageError(f"planner uniform:k needs a whole number k of stages from 1 up, not {shorten(repr(argument))}")
    return partial(uniform.solve, length=length)
