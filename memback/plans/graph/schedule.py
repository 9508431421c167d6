"""Schedules over a graph's fixed order, stage by stage, and the actions that they come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from memback.plans.actions import Compute, Discard, GraphAction, Reverse, Stored
from memback.plans.graph.nodes import Graph

__all__ = ["Schedule", "everything", "nothing", "unfold"]


class Schedule(NamedTuple):
    """What is done in each stage of a schedule over the fixed order; stage b ends with the reversal of node b.

    Attributes:
        outputs, saves: by stage, the nodes whose output or saves are stored when it begins.
        runs: by stage, the nodes that are computed in it.
    """

    outputs: Sequence[frozenset[int]]
    saves: Sequence[frozenset[int]]
    runs: Sequence[frozenset[int]]


def everything(graph: Graph) -> Schedule:
    """The schedule that stores all that backward needs until it is needed last."""
    n = len(graph)
    first = {v: b for b in reversed(range(n)) for v in graph.nodes[b].needs}  # backward comes there last
    return Schedule(
        [frozenset(v for v, until in first.items() if v <= b and until <= b) for b in range(n)],
        [frozenset(v for v in range(b + 1) if graph.nodes[v].saved_bytes) for b in range(n)],
        [frozenset()] * n,
    )


def nothing(graph: Graph) -> Schedule:
    """The schedule that stores nothing: each stage computes all that it needs."""
    n = len(graph)
    runs = []
    for b, node in enumerate(graph.nodes):
        wanted = {*node.needs, *([b] if node.saved_bytes else [])}
        for k in reversed(range(b + 1)):
            if k in wanted:
                wanted.update(graph.nodes[k].uses)
        runs.append(frozenset(wanted))
    return Schedule([frozenset()] * n, [frozenset()] * n, runs)


def unfold(graph: Graph, schedule: Schedule) -> list[GraphAction]:
    """The actions of a schedule: what a stage has no use for any more is discarded at the first opportunity."""
    n = len(graph)
    actions: list[GraphAction] = []
    outputs, saves = schedule.outputs[n - 1], schedule.saves[n - 1]
    for i in range(n):
        actions.append(Compute(i, i in saves))
        if i not in outputs:
            actions.append(Discard(i))
    held, saved = set(outputs), set(saves)
    for b in reversed(range(n)):
        after = schedule.outputs[b - 1] if b else frozenset()
        saves_after = schedule.saves[b - 1] if b else frozenset()
        runs = _of_use(graph, b, schedule.runs[b], (held, saved), (after, saves_after))
        _stage(graph, b, runs, (held, saved), (after, saves_after), actions)
    return actions


def _of_use(
    graph: Graph,
    b: int,
    runs: Iterable[int],
    stored: tuple[set[int], set[int]],
    after: tuple[frozenset[int], frozenset[int]],
) -> list[int]:
    """The computations of stage b that give something that is wanted and not stored, in order."""
    wanted = after[0].union(graph.nodes[b].needs)
    saves = after[1].union([b] if graph.nodes[b].saved_bytes else [])
    found = []
    for k in sorted(runs, reverse=True):
        if (k in wanted and k not in stored[0]) or (k in saves and k not in stored[1]):
            found.append(k)
            wanted = wanted.union(graph.nodes[k].uses)
    return found[::-1]


def _stage(
    graph: Graph,
    b: int,
    runs: Sequence[int],
    stored: tuple[set[int], set[int]],
    after: tuple[frozenset[int], frozenset[int]],
    actions: list[GraphAction],
) -> None:
    """Add the actions of stage b, and leave in ``stored`` (outputs, saves) what is stored then."""
    held, saved = stored
    needs = set(graph.nodes[b].needs)
    last = {v: position for position, k in enumerate(runs) for v in graph.nodes[k].uses}
    own = {b} if graph.nodes[b].saved_bytes else set()

    def discard(position: int) -> None:
        stay = needs | after[0] | {v for v, until in last.items() if until > position}
        for v in sorted(held - stay):
            held.discard(v)
            actions.append(Discard(v))
        for v in sorted(saved - own - after[1]):
            saved.discard(v)
            actions.append(Discard(v, Stored.SAVES))

    discard(-1)
    for position, k in enumerate(runs):
        with_saves = k not in saved and (k in own or k in after[1])
        if k in held:
            actions.append(Discard(k))
        actions.append(Compute(k, with_saves))
        held.add(k)
        if with_saves:
            saved.add(k)
        discard(position)
    actions.append(Reverse(b))
    held.discard(b)
    saved.discard(b)
    needs, own = set(), set()
    last.clear()
    discard(len(runs))
