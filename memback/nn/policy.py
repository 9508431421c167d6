"""Checkpoint policies: which segments of a model are recomputed instead of kept.

A policy is applied to *units*: the layers of an ``nn.Sequential`` (or the time steps of an ``nn.LSTM``), which form a
chain, so that neighbours can share a segment; or the members of an ``nn.ModuleList``, which are checkpointed one by
one, since only the model knows how they are connected. Only outermost containers count: a policy that cuts a chain of
blocks leaves the inside of a block alone.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from memback.engine.checkpoint import run_segment
from memback.engine.op import REGISTRY
from memback.errors import UsageError, shorten
from memback.units import parse_count

if TYPE_CHECKING:
    from memback.nn.module import Module

__all__ = ["POLICIES", "Planned", "Policy", "applied", "run_chain", "run_units"]


class Planned(Protocol):
    """A plan for a whole model, which can stand in place of a policy."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def check(self, module: Module) -> None:
        """Raise unless the plan was made for such a module."""

    def apply(self, module: Module) -> AbstractContextManager[None]:
        """In the block, calls of ``module`` run the plan."""

    def run(self, forward: Callable[..., Any], *args: Any) -> Any:
        """Run ``forward`` under the plan."""


@dataclass(frozen=True)
class Policy:
    """A parsed policy.

    ``name`` is how it is written. ``length`` gives the units of a segment for a chain of n (None: nothing of a chain is
    checkpointed), ``whole`` says that the last segment is checkpointed too (it need not be: its recomputation would
    follow at once). ``keep_products`` keeps the outputs of matrix products inside segments. ``pattern`` selects
    modules by path instead of units.
    """

    name: str
    length: Callable[[int], int] | None = None
    whole: bool = False
    keep_products: bool = False
    pattern: str | None = None

    @staticmethod
    def parse(text: str | Policy) -> Policy:
        """Read a policy's name.

        Raises:
            UsageError: there is no such policy, or its argument is missing or wrong.
        """
        if isinstance(text, Policy):
            return text
        name, _, argument = text.partition(":")
        if name not in POLICIES:
            raise UsageError(
                f"unknown checkpoint policy {shorten(repr(text))}; there are {', '.join(map(_usage, POLICIES))}"
            )
        return POLICIES[name](argument)

    def segments(self, units: int) -> Iterator[tuple[int, int, bool]]:
        """(first unit, one past the last, whether it is checkpointed) of each segment of a chain."""
        if self.length is None or units == 0:
            yield 0, units, False
            return
        length = self.length(units)
        for start in range(0, units, length):
            stop = min(start + length, units)
            yield start, stop, self.whole or stop < units

    def run(self, units: Sequence[Callable[..., Any]], x: Any) -> Any:
        """Run a chain as :func:`run_chain` describes."""
        for start, stop, checkpointed in self.segments(len(units)):
            x = run_units(units[start:stop], x, checkpointed, self.keep)
        return x

    @property
    def keep(self) -> frozenset[str]:
        """Names of the ops whose outputs are kept inside segments."""
        if not self.keep_products:
            return frozenset()
        return frozenset(op.name for op in REGISTRY.values() if op.matrix_product)


def _none(argument: str) -> Policy:
    """Keep everything that backward needs."""
    _no_argument("none", argument)
    return Policy("none")


def _every(argument: str) -> Policy:
    """Segments of k units; the last one is kept. Written every:k."""
    length = parse_count(argument)
    if length is None:
        raise UsageError(f"policy every:k needs a whole number k of units from 1 up, not {shorten(repr(argument))}")
    return Policy(f"every:{length}", length=lambda n: length)


def _sqrt(argument: str) -> Policy:
    """Segments of about sqrt(n) units for a chain of n; the last one is kept (Chen et al. 2016)."""
    _no_argument("sqrt", argument)
    return Policy("sqrt", length=lambda n: math.isqrt(n - 1) + 1)


def _all(argument: str) -> Policy:
    """Every unit is a segment of its own: only the units' inputs are kept."""
    _no_argument("all", argument)
    return Policy("all", length=lambda n: 1, whole=True)


def _selective(argument: str) -> Policy:
    """In every unit keep the products with weights, recompute the rest (selective:attention: attention cores alone).

    Korthikanti et al. 2022, arXiv 2205.05198, recompute the cores of attention.
    """
    if argument == "attention":
        return Policy("selective:attention", pattern="*.core")
    if argument:
        raise UsageError(f"policy selective takes no argument but 'attention', not {shorten(repr(argument))}")
    return Policy("selective", length=lambda n: 1, whole=True, keep_products=True)


def _match(argument: str) -> Policy:
    """Checkpoint the modules whose path matches a shell pattern. Written match:blocks.*.mlp."""
    if not argument:
        raise UsageError("policy match:PATTERN needs a pattern of layer paths, such as match:blocks.*.mlp")
    return Policy(f"match:{argument}", pattern=argument)


def _no_argument(name: str, argument: str) -> None:
    if argument:
        raise UsageError(f"policy {name!r} takes no argument, but got {shorten(repr(argument))}")


def _usage(name: str) -> str:
    return {"every": "every:k", "match": "match:PATTERN", "selective": "selective[:attention]"}.get(name, name)


POLICIES: dict[str, Callable[[str], Policy]] = {
    "none": _none,
    "every": _every,
    "sqrt": _sqrt,
    "all": _all,
    "selective": _selective,
    "match": _match,
}
"""Every policy by name: a function from what stands after the colon to a :class:`Policy`."""


class _Segment:
    """Units that run one after the other."""

    def __init__(self, units: Sequence[Callable[..., Any]]) -> None:
        self.units = units

    def __call__(self, *carry: Any) -> Any:
        result: Any = carry
        for unit in self.units:
            result = unit(*result) if isinstance(result, tuple) else unit(result)
        return result[0] if isinstance(result, tuple) and len(result) == 1 else result


def run_units(
    units: Sequence[Callable[..., Any]], x: Any, checkpointed: bool = False, keep: Collection[str] = ()
) -> Any:
    """Run units one after the other, as one checkpointed segment or plainly."""
    segment = _Segment(units)
    carry = x if isinstance(x, tuple) else (x,)
    del x
    return run_segment(segment, carry, {}, keep, warn=False) if checkpointed else segment(*carry)


def run_chain(units: Sequence[Callable[..., Any]], x: Any, policy: Policy) -> Any:
    """Run ``units`` one after the other on ``x``, checkpointing as ``policy`` says.

    ``x`` and what a unit returns may be a tuple, which the next unit takes as separate arguments.
    """
    return policy.run(units, x)


@contextmanager
def applied(module: Module, policy: str | Policy | Planned | None) -> Iterator[None]:
    """Apply a policy or a plan to a model for the duration of a block; afterwards the model is as it was.

    Raises:
        UsageError: the model has nothing that the policy could apply to, or the plan is not for it.
    """
    if policy is None:
        yield
        return
    if not isinstance(policy, (str, Policy)):
        with policy.apply(module):
            yield
        return
    policy = Policy.parse(policy)
    chains, runners = _targets(module, policy)
    if policy.name != "none" and not chains and not runners:
        raise UsageError(f"policy {policy.name!r} finds nothing to checkpoint in {type(module).__name__}")

    def runner(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return run_segment(forward, args, kwargs, policy.keep, warn=False)

    before = [(chain, "policy", chain.policy) for chain in chains] + [(m, "_runner", m._runner) for m in runners]
    try:
        for chain in chains:
            chain.policy = policy
        for target in runners:
            target._runner = runner
        yield
    finally:
        for target, attribute, value in before:
            setattr(target, attribute, value)


def _targets(module: Module, policy: Policy) -> tuple[list[Any], list[Module]]:
    chains: list[Any] = []
    runners: list[Module] = []

    def visit(node: Module) -> None:
        if policy.pattern is not None:
            if node.path and fnmatch.fnmatchcase(node.path, policy.pattern):
                runners.append(node)
                return
        elif node.is_chain:
            chains.append(node)
            return
        elif node.is_collection:
            if policy.length is not None:
                runners.extend(node.children())
            return
        for child in node.children():
            visit(child)

    visit(module)
    return chains, runners
