"""Checkpoint policies: which segments of a model are recomputed instead of kept.

``policy.apply(model)`` applies one to any model, for the duration of a ``with`` block. It cuts *units* into segments:

- the layers of an ``nn.Sequential`` (or the time steps of an ``nn.LSTM``) are a chain, in which neighbours share a
  segment;
- the members of an ``nn.ModuleList`` are segments of their own, because only the model knows how they are connected;
- blocks that are named, ``Policy.parse("sqrt", blocks="layers.*")``, are a chain that the model calls itself.

Only outermost containers count: a policy that cuts a chain of blocks leaves the inside of a block alone. A model with
no container needs names.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from memback.engine.checkpoint import run_segment
from memback.engine.op import REGISTRY
from memback.errors import UsageError, shorten
from memback.nn.blocks import CalledBlocks, find_blocks
from memback.units import parse_count

if TYPE_CHECKING:
    from memback.nn.module import Module

__all__ = ["POLICIES", "PlanLike", "Planned", "Policy", "applied", "run_chain", "run_units"]


class PlanLike(Protocol):
    """A plan for a whole model, usable in place of a policy."""

    @property
    def name(self) -> str:
        """What reports call it."""

    def check(self, module: Module) -> None:
        """Raise unless the plan was made for such a module."""

    def apply(self, module: Module) -> AbstractContextManager[None]:
        """In the block, calls of ``module`` run the plan."""

    def run(self, forward: Callable[..., Any], *args: Any) -> Any:
        """Run ``forward`` under the plan."""


Planned = PlanLike
"""Its name in version 0.1."""


@dataclass(frozen=True)
class Policy:
    """A parsed policy.

    ``name`` is how it is written. ``length`` gives the units of a segment for a chain of n (None: nothing of a chain is
    checkpointed), ``whole`` says that the last segment is checkpointed too (it need not be: its recomputation would
    follow at once). ``keep_products`` keeps the outputs of matrix products inside segments. ``pattern`` selects
    modules by path instead of units. ``blocks`` are the names of the units, as patterns, in the order of their calls.
    """

    name: str
    length: Callable[[int], int] | None = None
    whole: bool = False
    keep_products: bool = False
    pattern: str | None = None
    blocks: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str | Policy, blocks: str | Sequence[str] = ()) -> Policy:
        """Read a policy's name.

        Args:
            text: such as ``"sqrt"`` or ``"every:2"``.
            blocks: names of the modules that a model calls one after the other, each on the output of the one before:
                shell patterns such as ``"layers.*"``, in the order of the calls. A module that is called twice is
                named twice. Without any, containers are looked for.

        Raises:
            UsageError: there is no such policy, its argument is missing or wrong, or it selects modules itself and
                blocks are named too.
        """
        policy = text if isinstance(text, Policy) else _parsed(text)
        if not blocks:
            return policy
        if policy.pattern is not None:
            raise UsageError(f"policy {policy.name!r} selects modules by their names: it takes no blocks")
        return replace(policy, blocks=(blocks,) if isinstance(blocks, str) else tuple(blocks))

    def apply(self, model: Module) -> AbstractContextManager[None]:
        """In a ``with`` block, calls of ``model`` run under the policy; afterwards the model is as it was.

        Gradients are bit-identical to those without a policy.

        Raises:
            UsageError: when the block is entered, the model has nothing that the policy could apply to; when the model
                is called, it does not call the named blocks one after the other.
        """
        return _applied(model, self)

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


class _Units:
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
    segment = _Units(units)
    carry = x if isinstance(x, tuple) else (x,)
    del x
    return run_segment(segment, carry, {}, keep, warn=False) if checkpointed else segment(*carry)


def run_chain(units: Sequence[Callable[..., Any]], x: Any, policy: Policy) -> Any:
    """Run ``units`` one after the other on ``x``, checkpointing as ``policy`` says.

    ``x`` and what a unit returns may be a tuple, which the next unit takes as separate arguments.
    """
    return policy.run(units, x)


def _parsed(text: str) -> Policy:
    name, _, argument = text.partition(":")
    if name not in POLICIES:
        raise UsageError(
            f"unknown checkpoint policy {shorten(repr(text))}; there are {', '.join(map(_usage, POLICIES))}"
        )
    return POLICIES[name](argument)


def applied(module: Module, policy: str | Policy | PlanLike | None) -> AbstractContextManager[None]:
    """Apply a policy, by name or not, or a plan to a model in a ``with`` block; None applies nothing.

    Raises:
        UsageError: the model has nothing that the policy could apply to, or the plan is not for it.
    """
    if policy is None:
        return nullcontext()
    return (Policy.parse(policy) if isinstance(policy, str) else policy).apply(module)


@contextmanager
def _applied(module: Module, policy: Policy) -> Iterator[None]:
    before: list[tuple[Module, str, Any]] = []
    try:
        for target, attribute, value in _changes(module, policy):
            before.append((target, attribute, getattr(target, attribute)))
            setattr(target, attribute, value)
        yield
    finally:
        for target, attribute, value in reversed(before):
            setattr(target, attribute, value)


def _changes(module: Module, policy: Policy) -> list[tuple[Module, str, Any]]:
    """Which attribute of which module is to be what under a policy."""
    if policy.blocks:
        called = CalledBlocks(find_blocks(module, policy.blocks), policy)
        runners = [(block, "_runner", called.runner(block)) for block in dict.fromkeys(called.blocks)]
        return [(module, "_runner", called.run_model), *runners]
    chains, targets = _targets(module, policy)
    if policy.name != "none" and not chains and not targets:
        hint = "" if policy.pattern is not None else ", no Sequential or ModuleList: name its blocks (Policy.parse)"
        raise UsageError(f"policy {policy.name!r} finds nothing to checkpoint in {type(module).__name__}{hint}")

    def runner(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return run_segment(forward, args, kwargs, policy.keep, warn=False)

    return [(chain, "policy", policy) for chain in chains] + [(target, "_runner", runner) for target in targets]


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
