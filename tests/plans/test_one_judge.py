"""A chain is a graph in a line: both ways of saying so are judged alike."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from memback.plans import PLANNERS, BudgetError, Stage, graph, simulate
from memback.plans.actions import Action, Backward, Compute, Discard, Drop, Forward, GraphAction, Keep, Reverse, Stored
from memback.plans.graph import Graph, Node, Running
from memback.plans.simulate import Chain, replay


def in_a_line(stages: Sequence[Stage], input_bytes: int) -> Graph:
    """The graph of a chain, whose input is live at all times and whose last gradient comes with its backward."""
    nodes = [
        Node(
            stage.forward_cost,
            stage.output_bytes,
            (i - 1,) if i else (),
            (i - 1, i) if i else (i,),
            saved_bytes=stage.saved_bytes,
            workspace=stage.forward_workspace,
            backward_cost=stage.backward_cost,
            gradient_bytes=stage.gradient_bytes,
            backward_workspace=stage.backward_workspace,
            parameter_gradient_bytes=stage.parameter_gradient_bytes,
        )
        for i, stage in enumerate(stages)
    ]
    line = Graph(tuple(nodes))
    return Graph(
        line.nodes,
        tuple(Running(m.node, m.alive, m.besides + input_bytes) for m in line.running),
        (*(size + input_bytes for size in line.before[:-1]), input_bytes),
        (line.during[0] + 2 * input_bytes, *(size + input_bytes for size in line.during[1:])),
    )


def lowered(actions: Sequence[Action]) -> Iterator[GraphAction]:
    """The actions of a chain as those of its graph."""
    saved: set[int] = set()
    for action in actions:
        i = action.stage
        match action:
            case Forward(_, keep):
                saved |= {i} if keep is Keep.EVERYTHING else set()
                yield Compute(i, keep is Keep.EVERYTHING)
                if keep is Keep.NOTHING:
                    yield Discard(i - 1)
            case Backward():
                yield Reverse(i)
                if i and i - 1 not in saved:
                    yield Discard(i - 1)
            case Drop(_, stored):
                saved -= {i} if stored is Stored.SAVES else set()
                yield Discard(i, stored)


@pytest.mark.parametrize("seed", range(60))
def test_a_plan_for_a_chain_costs_and_takes_what_it_does_as_one_for_a_graph(seed: int) -> None:
    r = random.Random(seed)

    def stage() -> Stage:
        sizes = (r.randint(0, 20), r.randint(0, 40), r.choice([None, r.randint(0, 20)]), r.randint(0, 9))
        return Stage(r.randint(1, 9), r.random(), *sizes, r.randint(0, 9), r.randint(0, 5))

    stages, input_bytes = [stage() for _ in range(r.randint(1, 4))], r.choice([0, r.randint(1, 9)])
    line, most = in_a_line(stages, input_bytes), PLANNERS["all"](stages, 10**9, input_bytes).peak_bytes
    for solve in PLANNERS.values():
        for share in (0.4, 0.6, 0.8, 1.0):
            with suppress(BudgetError):
                actions = solve(stages, int(most * share), input_bytes).actions
                assert graph.simulate(line, lowered(actions)) == simulate(stages, actions, input_bytes)


def test_the_peak_s_parts_are_what_the_stages_say() -> None:
    r = random.Random(1)
    for _ in range(200):
        sizes = [[r.randint(0, 99) for _ in range(7)] for _ in range(4)]
        stages = [Stage(1, 1, out, saved, *rest) for out, saved, *rest in sizes]
        plan = PLANNERS["sqrt"](stages, 10**9, 7)
        peak = replay(Chain(stages, 7), plan.actions)[1]
        at, live = stages[peak.action.stage], peak.live
        assert live.input == 7
        if isinstance(peak.action, Backward):
            assert live.workspace == at.backward_workspace
        else:
            swept = peak.action.keep is not Keep.EVERYTHING
            assert live.workspace == (at.workspace_of_sweep if swept else at.forward_workspace)
        assert live.total == plan.peak_bytes
