"""Graphs to plan for, and the best schedule over a small one's fixed order by trying all, as the definition has it."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from itertools import count
from typing import TypeAlias

from memback.plans.graph.search import Graph, Node

State: TypeAlias = tuple[int, int, frozenset[int], frozenset[int]]
"""(node to be reversed next, least node that may still be computed before that, stored outputs, stored saves)"""


def small(n: int, seed: int, largest: int = 9) -> Graph:
    """Nodes of random sizes that use and need random earlier ones."""
    r = random.Random(seed)
    nodes = []
    for i in range(n):
        uses = {v for v in range(i) if r.random() < 0.35} | ({i - 1} if i and r.random() < 0.8 else set())
        needs = {v for v in uses if r.random() < 0.7} | ({i} if r.random() < 0.4 else set())
        nodes.append(
            Node(
                r.randint(0, 9),
                r.randint(0, largest),
                tuple(sorted(uses)),
                tuple(sorted(needs)),
                saved_bytes=r.choice([0, 0, r.randint(1, largest)]),
                workspace=r.choice([0, r.randint(0, largest)]),
                backward_cost=r.randint(0, 9),
                gradient_bytes=r.choice([None, r.randint(0, largest)]),
                backward_workspace=r.choice([0, r.randint(0, largest)]),
                parameter_gradient_bytes=r.choice([0, r.randint(0, largest // 2)]),
            )
        )
    return Graph(tuple(nodes))


class Trial:
    """Every schedule over a small graph's fixed order."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = graph.nodes
        self.n = len(graph.nodes)
        users = [[i for i, node in enumerate(self.nodes) if v in node.uses] for v in range(self.n)]
        self.last = [max(u, default=self.n) for u in users]
        self.saving = [i for i, node in enumerate(self.nodes) if node.saved_bytes]

    def cheapest(self, budget: int) -> float | None:
        """The least cost of what is computed again within a budget; None if nothing fits."""
        return self._path(lambda so_far, cost, live: so_far + cost if live <= budget else None)

    def leanest(self) -> float:
        """The least peak."""
        peak = self._path(lambda so_far, cost, live: max(so_far, live))
        assert peak is not None
        return peak

    def _path(self, length: Callable[[float, float, int], float | None]) -> float | None:
        order = count()
        best: dict[State, float] = {}
        queue: list[tuple[float, int, State]] = []

        def offer(so_far: float | None, state: State) -> None:
            if so_far is not None and so_far < best.get(state, float("inf")):
                best[state] = so_far
                heapq.heappush(queue, (so_far, next(order), state))

        for outputs in self._subsets(range(self.n)):
            for saves in self._subsets(self.saving):
                offer(length(0, 0, self._forward(outputs, saves)), (self.n - 1, 0, outputs, saves))
        while queue:
            so_far, _, state = heapq.heappop(queue)
            if state[0] < 0:
                return so_far
            if so_far == best[state]:
                for cost, live, after in self._steps(state):
                    offer(length(so_far, cost, live), after)
        return None

    def _steps(self, state: State) -> Iterator[tuple[float, int, State]]:
        b, start, outputs, saves = state
        node = self.nodes[b]
        for v in outputs:
            yield 0, 0, (b, start, outputs - {v}, saves)
        for v in saves:
            yield 0, 0, (b, start, outputs, saves - {v})
        held = self._size(outputs) + sum(self.nodes[v].saved_bytes for v in saves)
        if outputs >= set(node.needs) and (not node.saved_bytes or b in saves):
            yield 0, held + self._during(b), (b - 1, 0, outputs - {b}, saves - {b})
        if not node.needs and not node.saved_bytes:
            return
        for k in range(start, b + 1):
            made = self.nodes[k]
            if k in outputs or not outputs >= set(made.uses):
                continue
            live = held + self._before(b) + made.output_bytes + made.workspace
            yield made.cost, live, (b, k + 1, outputs | {k}, saves)
            if made.saved_bytes and k not in saves:
                yield made.cost, live + made.saved_bytes, (b, k + 1, outputs | {k}, saves | {k})

    def _forward(self, outputs: frozenset[int], saves: frozenset[int]) -> int:
        peak = 0
        for c, node in enumerate(self.nodes):
            alive = {v for v in range(c + 1) if self.last[v] >= c} | {v for v in outputs if v < c}
            kept = sum(self.nodes[v].saved_bytes for v in saves if v <= c)
            peak = max(peak, self._size(alive) + kept + node.workspace)
        return peak

    def _size(self, outputs: frozenset[int] | set[int]) -> int:
        return sum(self.nodes[v].output_bytes for v in outputs)

    def _before(self, b: int) -> int:
        activations = sum(self._gradient(v) for v in range(b + 1) if self.last[v] > b)
        return activations + sum(node.parameter_gradient_bytes for node in self.nodes[b + 1 :])

    def _during(self, b: int) -> int:
        new = sum(self._gradient(v) for v in range(b) if self.last[v] == b)
        return self._before(b) + new + self.nodes[b].backward_workspace + self.nodes[b].parameter_gradient_bytes

    def _gradient(self, v: int) -> int:
        size = self.nodes[v].gradient_bytes
        return self.nodes[v].output_bytes if size is None else size

    @staticmethod
    def _subsets(values: object) -> Iterator[frozenset[int]]:
        items = list(values)  # type: ignore[call-overload]
        for mask in range(1 << len(items)):
            yield frozenset(v for i, v in enumerate(items) if mask >> i & 1)
