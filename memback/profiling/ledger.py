"""The ledger: an observer that records every buffer that backprop keeps, by which call, and until when.

Ops and layers know nothing of it; it is an :class:`~memback.engine.observer.Observer`. It follows root buffers by
weak references, so it never prolongs a life. What it knows is in its :class:`~memback.profiling.accounts.Accounts`.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from memback.dry.memory import dry_memory
from memback.engine.arrays import Array, buffer_bytes, dtype_name, is_array, leaves, root
from memback.engine.node import AnyTape, Edge, Node
from memback.engine.observer import Call, Observer
from memback.engine.op import Op
from memback.engine.state import current
from memback.engine.tensor import Tensor
from memback.profiling.accounts import Account, Accounts, Category, Event, Interval, Phase, Row

__all__ = ["DryLedger", "Ledger"]


class _Holding(weakref.ref[Node]):
    """What a recorded call keeps, saved and recomputed, by weak reference to the call."""

    __slots__ = ("accounts", "key", "recomputed", "row")

    accounts: list[Account]
    key: int
    recomputed: list[Account]
    row: Row

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Ledger(Accounts, Observer):
    """Record everything that happens while this is the thread's observer.

    Buffers and calls that are gone are put into a queue by the interpreter itself, and entered in the books before
    anything else is: an interrupt (Ctrl-C) in a function of Python's that is called then would be printed and lost.

    Args:
        names: what parameters, buffers and inputs are called, by the id of their root buffer.
        timed: whether to take each call's time.
        events: whether to keep the timeline.
    """

    def __init__(self, names: Mapping[int, str] | None = None, timed: bool = False, events: bool = True) -> None:
        super().__init__(names, events)
        self._gone: deque[Account | _Holding] = deque()
        self._when_gone = self._gone.append
        self._intervals: list[tuple[Phase, tuple[str, str], tuple[int, ...], tuple[int, ...]]] = []
        self._timed = timed
        self._holdings: dict[int, _Holding] = {}
        self._variables: list[tuple[weakref.ref[AnyTape], Account]] = []
        self._retained: set[Account] = set()
        self._depth = 0
        self._mark = tuple(self._totals.values())
        self._began = 0.0
        self._leaf_gradients: dict[int, int] = {}

    # -- what the engine tells

    def forward_begins(self, op: Op) -> None:
        self._close()
        self._where = (current().path, op.name)
        self._began = time.perf_counter()

    def forward_ended(self, call: Call) -> None:
        seconds = time.perf_counter() - self._began if self._timed else None
        self._catch_up()
        row = self._row(call, seconds)
        self._meet_inputs(row, call)
        outs = call.out if call.op.multiple else (call.out,)
        for out in outs:
            self._meet(out, row, "output of")
        if call.node is not None:
            self._hold(call.node, row)
        if call.tape is not None and call.tape.retain == "all":
            self._retain(call.tape, outs, row)
        self._close()

    def forward_failed(self) -> None:
        self._close()

    def held(self, node: Node) -> None:
        self._catch_up()
        row = Row(node.path, node.name, self._count(node.path, node.name), (), "", node.site)
        if self._phase == "forward":
            self.rows.append(row)
        self._hold(node, row)

    def backward_pass_begins(self) -> None:
        self._close()
        if self._phase == "forward":
            self.charge_rows()
        self._phase = "backward"

    def backward_begins(self, node: Node) -> None:
        self._close()
        self._where = (node.path, node.name)

    def backward_ended(self, node: Node, edges: Sequence[Edge | None]) -> None:
        self._catch_up()
        self._where = (node.path, node.name)
        holding = self._holdings.get(id(node))
        owner = Row(node.path, node.name, 0, (), "", node.site) if holding is None else holding.row
        for edge in edges:
            if edge is not None and (grad := edge.grad) is not None:
                self._meet_gradient(grad, owner)
                if isinstance(edge, Tensor):
                    self._leaf_gradients[id(edge)] = grad.nbytes
        if holding is not None and not node.kept:
            self._let_go(holding)
        self._close()

    def recompute_begins(self, node: Node) -> None:
        self._close()
        self._depth += 1
        self._phase = "recompute"

    def recompute_ended(self, node: Node) -> None:
        self._close()
        self._depth -= 1
        if self._depth == 0:
            self._phase = "backward"

    def backward_pass_ended(self) -> None:
        self._settle()

    def update_begins(self) -> None:
        self._close()
        self._phase = "update"
        self._where = ("", "optimizer")

    def update_ended(self) -> None:
        self._close()

    def finish(self) -> None:
        """The step is over: close the last interval, and charge the rows if there was no backward.

        What dies from now on is no event of the step.
        """
        self._close()
        self._keep_events = False
        if self._phase == "forward":
            self.charge_rows()

    # -- what is known

    @property
    def events(self) -> list[Event]:
        self._catch_up()
        return super().events

    @property
    def intervals(self) -> list[Interval]:
        """The stretches between one thing that the ledger was told and the next."""
        return [Interval(phase, *where, start, end) for phase, where, start, end in self._intervals]

    @property
    def saved_bytes(self) -> int:
        """Bytes of the distinct buffers saved for backward at this moment."""
        self._settle()
        return self._totals["saved"]

    def live(self) -> dict[Category, int]:
        """Bytes in each category at this moment."""
        self._settle()
        return dict(self._totals)

    @property
    def parameter_gradient_bytes(self) -> int:
        """Bytes of the distinct gradients of leaves that backward has given so far."""
        return sum(self._leaf_gradients.values())

    # -- rows

    def _row(self, call: Call, seconds: float | None) -> Row:
        op = call.op
        out = call.out[0] if op.multiple else call.out
        repeated = self._phase == "recompute"
        flops = op.count_flops(call.values, call.out)
        if repeated:
            self.recomputed_flops += flops
        else:
            self.flops += flops
        path, name, tape = call.path, op.name, call.tape
        number = 0 if repeated else self._count(path, name)
        reruns = tape is not None and tape.reruns(call.node)
        row = Row(path, name, number, out.shape, dtype_name(out.dtype), call.site, flops, seconds, reruns)
        if not repeated:
            self.rows.append(row)
        return row

    def charge_rows(self) -> None:
        """Charge what is saved now to the calls that have made it."""
        self._charge((held.row, held.accounts) for held in self._holdings.values())

    # -- buffers

    def _meet_inputs(self, row: Row, call: Call) -> None:
        parameters: dict[int, int] = {}
        for value in call.values:
            for array in _arrays(value):
                account = self._meet(array, None)
                if account.argument and account.what.startswith("parameter"):
                    parameters[account.number] = account.bytes
        if parameters:
            row.parameter_bytes = sum(parameters.values())

    def _meet(self, array: Array, owner: Row | None, what: str = "", gradient: bool = False) -> Account:
        """The account of an array's buffer; where there is none yet, it is opened for ``what`` of the owner's."""
        buffer = array if array.base is None else root(array)
        key = id(buffer)
        account = self._accounts.get(key)
        return self._open(key, buffer, buffer_bytes(buffer), owner, what, gradient) if account is None else account

    def _meet_gradient(self, grad: Array, owner: Row) -> None:
        if not is_array(grad):  # NumPy gives scalars instead of arrays of no dimensions
            return
        account = self._meet(grad, owner, "gradient from", gradient=True)
        if not account.gradient and not account.argument:
            account.gradient = True
            self._sort(account, "gradient")

    def _hold(self, node: Node, row: Row) -> None:
        repeated = self._phase == "recompute"
        accounts: list[Account] = []
        recomputed: list[Account] = []
        residuals = node.residuals
        for name, value in node.saved():
            maker, what = (row, f"{name} of") if name in residuals else (None, "")
            for array in _arrays(value):
                account = self._meet(array, maker, what)
                if account.argument:
                    continue
                if repeated and not account.holders:
                    account.recomputed_holders += 1
                    recomputed.append(account)
                else:  # what was saved is not recomputed, though it is held for a call that is
                    account.holders += 1
                    accounts.append(account)
                if not repeated:
                    row.kept.append((name, account))
                self._sort(account, "hold")
        if repeated and (before := self._holdings.get(id(node))) is not None:
            self._let_go(before)
        holding = _Holding(node, self._when_gone)
        holding.key, holding.row = id(node), row
        holding.accounts, holding.recomputed = accounts, recomputed
        self._holdings[holding.key] = holding

    def _retain(self, tape: AnyTape, outs: Iterable[Array], row: Row) -> None:
        for out in outs:
            account = self._meet(out, row)
            if account.argument:
                continue
            if not account.holders:
                row.kept.append(("out", account))
            account.holders += 1
            self._variables.append((weakref.ref(tape), account))
            self._retained.add(account)
            self._sort(account, "hold")

    def _settle(self) -> None:
        """Let go of what a tape has dropped unobserved: cleared, or taken backward without an observer."""
        self._catch_up()
        for holding in list(self._holdings.values()):
            node = holding()
            if node is None or node.kept is None:
                self._let_go(holding)
        kept = []
        for tape_ref, account in self._variables:
            tape = tape_ref()
            if tape is not None and tape.variables:
                kept.append((tape_ref, account))
            else:
                account.holders -= 1
                self._resort(account)
        self._variables = kept
        self._retained = {account for _, account in kept}

    def _let_go(self, holding: _Holding) -> None:
        if self._holdings.get(holding.key) is not holding:
            return
        del self._holdings[holding.key]
        if self._phase == "forward":
            # the result was not used, so nothing is kept for its backward; its variable may be kept all the same
            row = holding.row
            row.kept = [(name, a) for name, a in row.kept if a in self._retained and a.owner is row]
        for account in holding.accounts:
            account.holders -= 1
            self._resort(account)
        for account in holding.recomputed:
            account.recomputed_holders -= 1
            self._resort(account)

    # -- time

    def _catch_up(self) -> None:
        """Enter in the books what has gone, in order."""
        while self._gone:
            gone = self._gone.popleft()
            if isinstance(gone, Account):
                self._died(gone)
            else:
                self._let_go(gone)

    def _close(self) -> None:
        self._catch_up()
        end = tuple(self._totals.values())
        self._intervals.append((self._phase, self._where, self._mark, end))
        self._mark = end


def _arrays(value: Any) -> Iterable[Array]:
    if type(value) is np.ndarray:
        return (value,)
    return () if value is None else leaves(value)


class DryLedger(Ledger):
    """A ledger that also notes the dry memory's peak in every interval; ``events`` is whether to keep the timeline."""

    def __init__(self, names: Mapping[int, str], events: bool = True) -> None:
        self.peaks: list[int] = []
        self._memory = dry_memory()
        super().__init__(names, events=events)

    def _close(self) -> None:
        super()._close()
        self.peaks.append(self._memory.peak)
        self._memory.reset_peak()
