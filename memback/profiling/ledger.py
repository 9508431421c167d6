"""The ledger: it watches a step and knows every buffer that backprop keeps, who keeps it, and until when.

Ops and layers know nothing of it; it is an :class:`~memback.engine.observer.Observer`. It follows root buffers by
weak references, so it never prolongs a life. Every buffer is in exactly one category at any moment (the words of the
glossary):

saved
    held by a call of the forward pass for its backward;
recomputed
    held by a call that a checkpoint has run again;
gradients
    dL/d(something), of a parameter or an activation;
outputs
    results of ops that somebody still refers to, without being any of the above;
gathered
    whole parameters, put together from the shards of several ranks, and what they are gathered in;
buckets
    what gradients are flattened into so that ranks can reduce them.

Arguments (parameters, buffers and inputs: whatever no op of the step has made) are in none. What remains of a measured
or predicted peak is workspace.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from memback.engine import tape as engine
from memback.engine.arrays import Array, buffer_bytes, is_array, leaves, root
from memback.engine.node import Edge, Node, Recorder
from memback.engine.observer import Call, Observer
from memback.engine.op import Op
from memback.engine.site import Site, short_path
from memback.engine.state import Setting, current
from memback.engine.tensor import Tensor

__all__ = [
    "CATEGORIES",
    "EXCHANGED",
    "Account",
    "Accounts",
    "Buffer",
    "Category",
    "Event",
    "Interval",
    "Ledger",
    "Row",
    "SavedValue",
    "Tape",
    "peak_of",
]

Category: TypeAlias = Literal["saved", "gradients", "recomputed", "outputs", "gathered", "buckets"]
Phase: TypeAlias = Literal["forward", "backward", "recompute", "update"]

CATEGORIES: tuple[Category, ...] = ("saved", "gradients", "recomputed", "outputs", "gathered", "buckets")


EXCHANGED: tuple[Category, ...] = ("gathered", "buckets")
"""Those that are there only where several ranks train a model."""


@lru_cache
def _name_of(dtype: Any) -> str:
    """NumPy puts a type's name together anew each time."""
    name: str = dtype.name
    return name


@dataclass(slots=True, eq=False)
class Row:
    """One call of an op in the forward pass.

    ``saved_bytes`` counts the distinct saved buffers that this call has made, whoever saves them; ``shared_bytes``
    those that it saves and another call has made. Sizes are in bytes, ``seconds`` is None where time was not taken.
    """

    path: str
    op: str
    call: int
    output_shape: tuple[int, ...]
    dtype: str
    site: Site | None
    flops: int = 0
    seconds: float | None = None
    recomputed: bool = False
    parameter_bytes: int = 0
    saved_bytes: int = 0
    shared_bytes: int = 0
    kept: list[tuple[str, Account]] = field(default_factory=list)
    """What the call keeps, arguments excluded: by its name in the op."""

    @property
    def saved(self) -> list[SavedValue]:
        """The values that the call keeps, with what is known of each."""
        return [account.as_saved(name) for name, account in self.kept]

    @property
    def source(self) -> str:
        """The line outside the engine that made the call."""
        return short_path(self.site)


class SavedValue(NamedTuple):
    """A value that a call keeps: its name in the op, its buffer's bytes, who made that, where, and its id."""

    name: str
    bytes: int
    origin: str
    source: str
    buffer: int


class Event(NamedTuple):
    """Something happened to a buffer.

    ``live_bytes`` is the sum over all categories after it, ``category`` the one that the buffer is in from then on:
    None where it is gone, or where a report of before there was this field does not say.
    """

    time: int
    kind: str
    buffer: int
    bytes: int
    live_bytes: int
    path: str
    op: str
    phase: Phase
    category: Category | None = None


class Buffer(NamedTuple):
    """A buffer that the step has made: by which call, what it is, and on which line the call was written."""

    buffer: int
    path: str
    op: str
    call: int
    origin: str
    source: str


class Interval(NamedTuple):
    """The stretch between two things that the ledger was told of; ``start`` and ``end`` give bytes by category."""

    phase: Phase
    path: str
    op: str
    start: tuple[int, ...]
    end: tuple[int, ...]


class Account(weakref.ref[Any]):
    """What the ledger knows of one root buffer, which it refers to weakly.

    An ``argument`` is a buffer that was there before the step. A ``role`` is a category that the buffer has whoever
    holds it. A ``closed`` account is that of a buffer that has no memory any more, though it may live on.
    """

    __slots__ = (
        "argument",
        "books",
        "bytes",
        "category",
        "closed",
        "gradient",
        "holders",
        "key",
        "number",
        "owner",
        "recomputed_holders",
        "role",
        "what",
    )

    argument: bool
    books: weakref.ref[Accounts]
    bytes: int
    category: Category | None
    closed: bool
    gradient: bool
    holders: int
    key: int
    number: int
    owner: Row | None
    recomputed_holders: int
    role: Category | None
    what: str

    __eq__ = object.__eq__  # a weak reference would ask the buffers
    __hash__ = object.__hash__

    @property
    def origin(self) -> str:
        """Where the buffer comes from, in words."""
        owner = self.owner
        if owner is None:
            return self.what
        return f"{self.what} {owner.op}" + (f" ({owner.path})" if owner.path else "")

    def as_saved(self, name: str) -> SavedValue:
        """This buffer as a value that a call keeps under ``name``."""
        source = "" if self.owner is None else self.owner.source
        return SavedValue(name, self.bytes, self.origin, source, self.number)


class _Holding(weakref.ref[Node]):
    """What a recorded call, which it refers to weakly, keeps: whether it is a ``repeated`` one, and which accounts."""

    __slots__ = ("accounts", "key", "repeated", "row")

    accounts: list[Account]
    key: int
    repeated: bool
    row: Row

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def _buffer_gone(account: Any) -> None:
    """Accounts refer weakly to the books that they are in, which are so gone as soon as nobody looks at them."""
    if (books := account.books()) is not None:
        books._died(account)


class Accounts:
    """The account of every buffer: whose it is, in which category, until when. It knows of no engine that makes them.

    Args:
        names: what parameters, buffers and inputs are called, by the key of their root buffer.
        events: whether to keep the timeline.
    """

    def __init__(self, names: Mapping[int, str] | None = None, events: bool = True) -> None:
        self.rows: list[Row] = []
        self._events: list[tuple[str, int, int, int, tuple[str, str], Phase, Category | None]] = []
        self.flops = 0
        self.recomputed_flops = 0
        self.saved_at_end_of_forward: int | None = None
        self._names = dict(names or {})
        self._keep_events = events
        self._made: list[Account] = []
        self._accounts: dict[int, Account] = {}
        self._totals: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
        self._live = 0
        self._calls: dict[tuple[str, str], int] = {}
        self._phase: Phase = "forward"
        self._where = ("", "")
        self._born = 0
        self._input_bytes = 0
        self._books = weakref.ref(self)
        self._when_gone: Callable[[Any], object] = _buffer_gone

    @property
    def events(self) -> list[Event]:
        """What happened to every buffer, in order."""
        return [
            Event(time, kind, buffer, size, live, *where, phase, category)
            for time, (kind, buffer, size, live, where, phase, category) in enumerate(self._events)
        ]

    @property
    def buffers(self) -> list[Buffer]:
        """The buffers of the timeline, in the order in which they were made."""
        return [
            Buffer(account.number, owner.path, owner.op, owner.call, account.origin, owner.source)
            for account in self._made
            if (owner := account.owner) is not None
        ]

    @property
    def input_bytes(self) -> int:
        """Bytes of the arguments that are neither parameters nor buffers: the step's inputs."""
        return self._input_bytes

    @property
    def parameter_gradient_bytes(self) -> int:
        """Bytes of the distinct gradients of leaves that backward has given so far."""
        raise NotImplementedError

    def _count(self, path: str, op: str) -> int:
        number = self._calls.get((path, op), 0)
        self._calls[path, op] = number + 1
        return number

    def _open(
        self,
        key: int,
        buffer: Any,
        size: int,
        owner: Row | None,
        what: str = "",
        gradient: bool = False,
        recomputed: bool = False,
    ) -> Account:
        """Open the account of a buffer of ``size`` bytes that is met for the first time.

        ``what`` it is of its owner's ("output of"), or what an argument is, unless it has a name. One that is
        ``recomputed`` counts as such for as long as it lives.
        """
        if owner is None:
            what = what or self._names.get(key, "input")
            if what == "input":
                self._input_bytes += size
        account = Account(buffer, self._when_gone)
        account.books = self._books
        account.key = key
        account.number = self._born
        account.bytes = size
        account.owner = owner
        account.what = what
        account.argument = owner is None
        account.gradient = gradient
        account.holders = 0
        account.recomputed_holders = int(recomputed)
        account.category = account.role = None
        account.closed = False
        self._born += 1
        self._accounts[key] = account
        if owner is not None:
            if self._keep_events:
                self._made.append(account)
            self._sort(account, "new")
        return account

    def _died(self, account: Account) -> None:
        """A buffer is gone, or its memory is."""
        if account.closed:
            return
        account.closed = True
        if self._accounts.get(account.key) is account:
            del self._accounts[account.key]
        category = account.category
        if category is not None:
            self._totals[category] -= account.bytes
            self._live -= account.bytes
            account.category = None
            if self._keep_events:
                self._events.append(("free", account.number, account.bytes, self._live, self._where, self._phase, None))

    def _category(self, account: Account) -> Category | None:
        """Where a buffer belongs now."""
        if account.argument:
            return None
        if account.holders:
            return "saved"
        if account.recomputed_holders:
            return "recomputed"
        return "gradients" if account.gradient else "outputs"

    def _sort(self, account: Account, kind: str) -> None:
        """Put a buffer into the category where it belongs now."""
        before, category = account.category, self._category(account)
        if before is not category:
            account.category = category
            if before is not None:
                self._totals[before] -= account.bytes
                self._live -= account.bytes
            if category is not None:
                self._totals[category] += account.bytes
                self._live += account.bytes
        if category is not None and self._keep_events:
            self._events.append((kind, account.number, account.bytes, self._live, self._where, self._phase, category))

    def _resort(self, account: Account) -> None:
        if account.category is not None:
            self._sort(account, "drop")

    def _charge(self, holdings: Iterable[tuple[Row, Iterable[Account]]]) -> None:
        """Charge each saved buffer to the call that made it, and note at the others that they share it."""
        for row in self.rows:
            row.saved_bytes = row.shared_bytes = 0
        for account in self._accounts.values():
            if account.category == "saved" and account.owner is not None:
                account.owner.saved_bytes += account.bytes
        for row, accounts in holdings:
            others = {a.number: a.bytes for a in accounts if a.owner is not row and not a.argument}
            row.shared_bytes = sum(others.values())
        self.saved_at_end_of_forward = self._totals["saved"]


class Ledger(Accounts, Observer):
    """Keeps the account of everything that happens while it is the thread's observer.

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
        self._variables: list[tuple[weakref.ref[Recorder], Account]] = []
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
            self._charge_rows()
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
        if holding is not None and node.kept is None:
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

        What dies from now on dies at other hands than the step's, and is no event of it.
        """
        self._close()
        self._keep_events = False
        if self._phase == "forward":
            self._charge_rows()

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
        row = Row(path, name, number, out.shape, _name_of(out.dtype), call.site, flops, seconds, reruns)
        if not repeated:
            self.rows.append(row)
        return row

    def _charge_rows(self) -> None:
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
        residuals = node.residuals
        for name, value in node.saved():
            maker, what = (row, f"{name} of") if name in residuals else (None, "")
            for array in _arrays(value):
                account = self._meet(array, maker, what)
                if account.argument:
                    continue
                accounts.append(account)
                if repeated:
                    account.recomputed_holders += 1
                else:
                    account.holders += 1
                    row.kept.append((name, account))
                self._sort(account, "hold")
        holding = _Holding(node, self._when_gone)
        holding.key, holding.row = id(node), row
        holding.accounts, holding.repeated = accounts, repeated
        self._holdings[holding.key] = holding

    def _retain(self, tape: Recorder, outs: Iterable[Array], row: Row) -> None:
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
        """Let go of what a tape has dropped without saying so: cleared, or taken backward with nobody watching."""
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
            # nobody used the result, so nothing is kept for its backward; its variable may be kept all the same
            row = holding.row
            row.kept = [(name, a) for name, a in row.kept if a in self._retained and a.owner is row]
        for account in holding.accounts:
            if holding.repeated:
                account.recomputed_holders -= 1
            else:
                account.holders -= 1
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


def peak_of(intervals: Sequence[Interval], peaks: Sequence[int]) -> tuple[int, dict[str, int]]:
    """Which interval has the highest peak, and what it is made of.

    Args:
        intervals: the ledger's.
        peaks: the highest number of live bytes in each, measured or predicted.

    Returns:
        the interval's number, and bytes by category and ``workspace``, which add up to its peak. A buffer that appeared
        in the interval counts under its category as far as the peak has room for it: it was being made.
    """
    number = max(range(len(peaks)), key=peaks.__getitem__)
    interval = intervals[number]
    parts: dict[str, int] = dict(zip(CATEGORIES, interval.start, strict=True))
    room = peaks[number] - sum(parts.values())
    for category, before, after in zip(CATEGORIES, interval.start, interval.end, strict=True):
        new = min(max(after - before, 0), max(room, 0))
        parts[category] += new
        room -= new
    parts["workspace"] = room
    return number, parts


class _Watch(Setting):
    """Has a ledger be the thread's observer."""

    field = "observer"

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def value(self) -> Ledger:
        return self._ledger


class Tape(engine.Tape):
    """A tape with a ledger: an explicit ``with mb.Tape() as tape:`` shows what it holds.

    Args:
        retain: as in :class:`memback.engine.tape.Tape`.

    Attributes:
        ledger: the :class:`Ledger` that watched the block.
    """

    def __init__(self, retain: Literal["needed", "all"] = "needed") -> None:
        super().__init__(retain)
        self.ledger = Ledger()
        self._watch = _Watch(self.ledger)

    def __enter__(self) -> Tape:
        super().__enter__()
        self._watch.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._watch.__exit__()
        super().__exit__(*details)

    @property
    def saved_bytes(self) -> int:
        """Bytes of the distinct buffers saved for backward now, arguments excluded."""
        return self.ledger.saved_bytes

    @property
    def events(self) -> list[Event]:
        """What happened to every buffer, in order."""
        return self.ledger.events

    def rows(self) -> list[Row]:
        """One row for each call of the forward pass; until backward begins, as of now."""
        if self.ledger.saved_at_end_of_forward is None:
            self.ledger._charge_rows()
            self.ledger.saved_at_end_of_forward = None
        return self.ledger.rows
