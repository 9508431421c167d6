"""Runs a plan for a graph on a real step: values are stored, discarded and computed again as the plan says.

Every call stays where it is on the tape, as under a plan for a chain (:mod:`memback.plans.model.execute`). When
backward
comes to a node, the plan's actions up to its ``Reverse`` are carried out, and the calls of the node are filled in from
what is stored then.
"""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from typing import Any

from memback.engine.errors import TapeError
from memback.engine.state import State
from memback.plans.actions import Compute, Discard, Reverse, Stored
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.recipes import LEAN, Held, keeps_its_own, saved_places
from memback.plans.model.running import Run

__all__ = ["GraphExecution"]


class _HeldSaves(Held):
    """The residuals of a call, as long as the plan stores them."""

    __slots__ = ()

    @property
    def residuals(self) -> tuple[str, ...]:
        return self.op.residuals

    def saved(self) -> list[tuple[str, Any]]:
        return [(name, r) for name, r in zip(self.op.residuals, self.out, strict=True) if r is not None]


class GraphExecution(Run):
    """One run of a region under a plan for the graph of its nodes."""

    def __init__(self, region: GraphRegion) -> None:
        super().__init__(region.calls)
        self.region = region
        self._saves: dict[int, Held] = {}
        self._position = region.begin
        self._reversing = len(region.graph)
        self._made: dict[int, Any] = {}
        """Outputs by call that are needed for a moment: views, and calls inside of a node."""

    # -- forward

    def lean(self) -> bool:
        return self.count < len(self.region.calls) and self.region.node_of[self.count] not in self.region.whole

    def keeps(self) -> bool:
        self._tell()
        if not self.lean():
            return True
        return self.region.node_of[self.count] in self.region.stored_in_forward[1]

    def may_run_again(self) -> bool:
        return self.region.repeats

    def runs_again(self, node: Any) -> bool:
        return self.region.node_of[node.index] in self.region.computed_again and node.index not in self.region.views

    def add(self, node: Any, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> None:
        number = self.count
        super().add(node, values, out, residuals)
        which = self.region.node_of[number]
        if self.region.makers[which] == number and which in self.region.held_in_forward:
            self._hold(number, node, out)
        if node.kept is LEAN and which in self.region.stored_in_forward[1]:
            self._hold_saves(number, node, residuals)

    def _hold_saves(self, number: int, node: Any, residuals: tuple[Any, ...]) -> None:
        wanted = set(node.saving.names)
        kept = tuple(r if name in wanted else None for name, r in zip(node.op.residuals, residuals, strict=True))
        if any(residual is not None for residual in kept):
            held = self._saves[number] = _HeldSaves(node, kept)
            self._untold.append(held)

    # -- backward

    def reach(self, number: int, state: State, retain: bool) -> None:
        node = self.region.node_of[number]
        if node == self._reversing:
            return
        self._reversing = node
        self._until_reverse(node, state, retain)
        self._fill(node, state)
        if retain:
            return
        self._forget(node)
        actions = self.region.actions
        while self._position < len(actions) and isinstance(actions[self._position], Discard):
            self._discard(actions[self._position])
            self._position += 1

    def _until_reverse(self, node: int, state: State, retain: bool) -> None:
        while self._position < len(self.region.actions):
            action = self.region.actions[self._position]
            self._position += 1
            if isinstance(action, Reverse):
                if action.node == node:
                    return
                if not retain:
                    self._forget(action.node)
            elif isinstance(action, Compute):
                self._compute(action, state)
            elif not retain:
                self._discard(action)

    def _discard(self, action: Any) -> None:
        if action.stored is Stored.OUTPUT:
            self._store.pop(self.region.makers[action.node], None)
        else:
            self._forget_saves(action.node)

    def _forget(self, node: int) -> None:
        """A node is being reversed, and its calls hold what they need: nothing of it is stored any more."""
        self._store.pop(self.region.makers[node], None)
        self._forget_saves(node)

    def _forget_saves(self, node: int) -> None:
        for number in self._calls_of(node):
            self._saves.pop(number, None)

    def _calls_of(self, node: int) -> range:
        return range(self.region.bounds[node], self.region.bounds[node + 1])

    # -- running nodes again

    def _compute(self, action: Compute, state: State) -> None:
        maker = self.region.makers[action.node]
        if maker in self._store and not action.saves:
            return  # the graph was retained
        solid = [n for n in self._calls_of(action.node) if n not in self.region.views and n <= maker]
        nodes = {n: node for n in solid if (node := self._nodes[n]()) is not None and node.recipe is not None}
        if maker not in nodes:
            return  # nobody can need it any more
        with self._again(nodes[maker], state):
            for number, node in nodes.items():
                values = self._bind(node, state)
                self._made.clear()
                out, residuals = self._run_again(number, node, values, action.saves, False, state)
                del values
                if number != maker:
                    self._made[number] = out
                elif number not in self._store:
                    self._hold(number, node, out)
                if action.saves and number not in self._saves:
                    self._hold_saves(number, node, residuals)
                self._tell()
            self._made.clear()

    def _bind(self, call: Any, state: State, needed: Container[int] | None = None) -> list[Any]:
        """A call's values, with those at the places ``needed`` (None: all) from what is stored."""
        values: list[Any] = call.recipe.bind(call.op, partial(self._output, state), needed)
        return values

    def _output(self, state: State, number: int, index: int | None = None) -> Any:
        """What a call gave: as it is stored, or made from that, where it is a view of it."""
        if number in self._store:
            out = self._store[number].out
        elif number in self._made:
            out = self._made[number]
        else:
            call: Any = self._nodes[number]()
            if call is None or call.recipe is None:
                raise TapeError(
                    f"call {number} of a planned model ({self.region.calls[number]}) would have to be run again for"
                    " backward, but an earlier backward has freed it. Pass retain_graph=True to that one, or run the"
                    " forward pass again."
                )
            out = self._run_again(number, call, self._bind(call, state), False, False, state)[0]
            self._made[number] = out
        return out if index is None else out[index]

    def _fill(self, node: int, state: State) -> None:
        """Have the calls of a node keep what their backward needs."""
        calls = [(n, call) for n in self._calls_of(node) if (call := self._nodes[n]()) is not None]
        lean = [(n, call) for n, call in calls if call.kept is LEAN and call.recipe is not None]
        if not lean:
            return
        with self._again(lean[0][1], state):
            for number, call in lean:
                self._fill_call(number, call, state)
            self._made.clear()

    def _fill_call(self, number: int, call: Any, state: State) -> None:
        op = call.op
        keeps_out, keeps_residuals = keeps_its_own(call)
        if keeps_residuals and number not in self._saves:  # somebody takes backward another way
            self._run_again(number, call, self._bind(call, state), True, True, state)
            return
        residuals = self._saves[number].out if keeps_residuals else (None,) * len(op.residuals)
        out = self._output(state, number) if keeps_out else call.recipe.stand_ins(op.multiple)
        values = self._bind(call, state, saved_places(call))
        call.kept = op.arguments(call.saving, values, out, residuals)
        if state.observer is not None:
            state.observer.held(call)
