"""The account of every buffer that backprop makes: whose it is, in which category, until when.

Every buffer is in exactly one category at any moment (the words of the glossary):

saved
    held by a call of the forward pass for its backward;
recomputed
    held by a call that a checkpoint has run again;
gradients
    dL/d(something), of a parameter or an activation;
outputs
    results of ops that are still referred to, and are none of the above;
gathered
    whole parameters, put together from the shards of several ranks, and what they are gathered in;
buckets
    what gradients are flattened into so that ranks can reduce them.

Arguments (parameters, buffers and inputs: whatever no op of the step has made) are in none. What remains of a measured
or predicted peak is workspace.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from memback.engine.site import Site, short_path

__all__ = [
    "CATEGORIES",
    "EXCHANGED",
    "Account",
    "Accounts",
    "Buffer",
    "Category",
    "Event",
    "Interval",
    "Phase",
    "Row",
    "SavedValue",
    "peak_of",
]


Category: TypeAlias = Literal["saved", "gradients", "recomputed", "outputs", "gathered", "buckets"]


Phase: TypeAlias = Literal["forward", "backward", "recompute", "update"]


CATEGORIES: tuple[Category, ...] = ("saved", "gradients", "recomputed", "outputs", "gathered", "buckets")


EXCHANGED: tuple[Category, ...] = ("gathered", "buckets")
"""Those that are there only where several ranks train a model."""


@dataclass(slots=True, eq=False)
class Row:
    """One call of an op in the forward pass.

    ``saved_bytes`` counts the distinct saved buffers that this call has made, whichever saves them; ``shared_bytes``
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
    """The record of one root buffer, by weak reference.

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


def _buffer_gone(account: Any) -> None:
    """Enter a buffer's death in its books, if they are still there: accounts refer to them weakly."""
    if (books := account.books()) is not None:
        books._died(account)


class Accounts:
    """The account of every buffer: its owner, category and lifetime, independent of the engine that makes it.

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
        """Charge each saved buffer to the call that made it; other calls that keep it share it."""
        for row in self.rows:
            row.saved_bytes = row.shared_bytes = 0
        for account in self._accounts.values():
            if account.category == "saved" and account.owner is not None:
                account.owner.saved_bytes += account.bytes
        for row, accounts in holdings:
            others = {a.number: a.bytes for a in accounts if a.owner is not row and not a.argument}
            row.shared_bytes = sum(others.values())
        self.saved_at_end_of_forward = self._totals["saved"]


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
