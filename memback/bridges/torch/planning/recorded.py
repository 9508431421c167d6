"""A step of a PyTorch module as its recorded calls, from two dry runs.

In the first everything is kept; it tells when buffers are born and die, and when backward asks for which. In the second
nothing is kept that can be recomputed; it tells how long the forward pass itself has use for each buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from memback.bridges.torch.recording.calls import calling
from memback.bridges.torch.recording.disturbances import is_planned_call
from memback.bridges.torch.recording.replay import Region, changed_names, changed_places
from memback.bridges.torch.recording.step import Step
from memback.bridges.torch.recording.storages import key, storages, tensors
from memback.bridges.torch.recording.tracking import Tracker
from memback.plans.calls.recorded import RecordedCalls, Value
from memback.profiling.accounts import Account
from memback.profiling.mode import Mode

__all__ = ["Recording", "Speed", "recorded", "regions"]

_NAMESPACES = frozenset({"aten", "torchvision"})
"""Of ops that can be run again: others may do more than they say."""


@dataclass(frozen=True)
class Speed:
    """How fast a device computes: a call takes the longer of its FLOPs' and its bytes' time."""

    flops: float
    bytes: float

    def seconds(self, flops: int, size: int) -> float:
        """Of a call with so many FLOPs that reads and writes so many bytes."""
        return max(flops / self.flops, size / self.bytes)


@dataclass
class _Call:
    """What was seen of a call."""

    func: Any
    path: str
    begins: int
    flops: int = 0
    moved: int = 0
    reads: list[int] = field(default_factory=list)
    makes: list[int] = field(default_factory=list)
    outside: list[int] = field(default_factory=list)
    """The accounts of what it reads and no call has made."""
    writes: list[int] = field(default_factory=list)
    """Those of these that it writes to."""
    kind: object = None
    replayable: bool = True


@dataclass
class _Made:
    """What was seen of a value."""

    call: int
    size: int
    born: float
    account: int
    needs: list[float] = field(default_factory=list)
    freed: float = np.inf
    becomes: int | None = None
    outer: bool = False


@dataclass(frozen=True)
class Recording:
    """A step's recorded calls, with what is needed to carry out a choice of them.

    Attributes:
        calls: what planners see.
        funcs: the names of all calls.
        paths: the module that made each.
        flops: of each, as reports count them: products of matrices, convolutions and attention.
        random: the calls that draw random numbers.
    """

    calls: RecordedCalls
    funcs: tuple[str, ...]
    paths: tuple[str, ...]
    flops: tuple[int, ...]
    random: frozenset[int]


class _Recorder(Tracker):
    """A tracker that notes every call of a region, and each birth, death and need."""

    def __init__(self, step: Step, kind: str | None) -> None:
        super().__init__(step.arguments(), step.module, events=False, kind=kind)
        self.told_of_forward = True
        self.recorded: list[_Call] = []
        self.made: list[_Made] = []
        self.moments: list[int] = []
        """The living bytes after each birth and death."""
        self.ended = 0
        """The moment at which the region's forward ended."""
        self.births: dict[tuple[int, int], float] = {}
        """By call and place among its births: the moment."""
        self.deaths: dict[tuple[int, int], tuple[int, int]] = {}
        """By a value's call and place there: the last call that had begun, and how many births there had been in it."""
        self.forward_done = False
        self._born_in_call = 0
        self._current: dict[int, int] = {}
        """By account: the value that the buffer is now."""
        self.birthplace: dict[int, tuple[int, int]] = {}
        """By account: the call that made it, and its place among that call's births."""
        self._needs: dict[int, int] = {}
        """By id of a packed tensor: the value that it looks into."""

    def region_ended(self) -> None:
        """The region's forward pass is over."""
        if self.ended:
            return
        self.ended = len(self.moments)
        self.recorded.append(_Call(None, "", self.ended))

    def forward_ended(self, result: Any = None) -> None:
        super().forward_ended(result)
        self.forward_done = True

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        number = self._number
        if number is None or self._own or self.ended:  # of a module that is called once more, the first call counts
            return super().run(func, args, kwargs)
        call = _Call(func, self._paths.path, len(self.moments))
        self.recorded.append(call)
        self._born_in_call = 0
        before = self._note_inputs(call, func, args, kwargs)
        flops = self.flops
        out = super().run(func, args, kwargs)
        call.flops = self.flops - flops
        self._number = None
        self._note_outputs(call, number, func, kwargs, out, before)
        return out

    def _note_inputs(self, call: _Call, func: Any, args: Any, kwargs: Any) -> dict[int, int]:
        """Note what a call reads; give, by account, the values that it writes to."""
        for tensor in tensors((args, kwargs)):
            call.moved += tensor.numel() * tensor.element_size()
            for account in self._accounts_of(tensor):
                if account.number in self._current:
                    call.reads.append(self._current[account.number])
                else:
                    call.outside.append(account.number)
        changed: dict[int, int] = {}
        written = [args[place] for place in changed_places(func, args)]
        for argument in [*written, *(kwargs[name] for name in changed_names(func, kwargs))]:
            for account in self._accounts_of(argument):
                changed[account.number] = self._current.get(account.number, -1)
        return changed

    def _accounts_of(self, value: Any) -> Iterator[Account]:
        for tensor in tensors(value):
            for storage in storages(tensor):
                account = self._accounts.get(key(storage))
                if account is not None:
                    yield account

    def _note_outputs(self, call: _Call, number: int, func: Any, kwargs: Any, out: Any, before: dict[int, int]) -> None:
        outputs = list(tensors(out))
        call.moved += sum(tensor.numel() * tensor.element_size() for tensor in outputs)
        plain = all(tensor.layout is torch.strided and not tensor.is_conj() for tensor in outputs)
        named = bool(changed_names(func, kwargs))
        call.replayable = plain and func.namespace in _NAMESPACES and -1 not in before.values() and not named
        for account_number, old in before.items():
            if old < 0:
                call.writes.append(account_number)
                continue
            self.made[old].becomes = len(self.made)
            self._make(call, number, self.made[old].size, float(len(self.moments)), account_number)
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in outputs)
        call.kind = str(func), shapes

    def _make(self, call: _Call, number: int, size: int, born: float, account: int) -> None:
        self._current[account] = len(self.made)
        call.makes.append(len(self.made))
        self.made.append(_Made(number, size, born, account))

    def _birth(self, storage: Any, size: int, row: Any) -> None:
        super()._birth(storage, size, row)
        account = self._accounts[key(storage)]
        inside = self.recorded and not self.ended and self._phase == "forward" and self._exchange is None
        if inside:
            number = len(self.recorded) - 1
            self._make(self.recorded[-1], number, size, float(len(self.moments)), account.number)
            self.births[number, self._born_in_call] = float(len(self.moments))
            self.birthplace[account.number] = number, self._born_in_call
            self._born_in_call += 1
        self.moments.append(self._bytes)

    def _died(self, account: Account) -> None:
        known = not account.closed and not account.argument and not self._over
        super()._died(account)
        if not known:
            return
        if account.number in self.birthplace and not self.forward_done:
            self.deaths[self.birthplace[account.number]] = len(self.recorded) - 1, self._born_in_call
        if account.number in self._current:
            self.made[self._current.pop(account.number)].freed = float(len(self.moments))
        self.moments.append(self._bytes)

    def _resized(self, account: Account, size: int) -> None:
        super()._resized(account, size)
        self.moments.append(self._bytes)

    def _pack(self, tensor: torch.Tensor) -> Any:
        packed = super()._pack(tensor)
        for account in self._accounts_of(tensor):
            if account.number in self._current:
                value = self._current[account.number]
                if self.ended:
                    self.made[value].outer = True  # kept by code that is in no region
                else:
                    self._needs[id(packed)] = value
        return packed

    def _unpack(self, packed: Any) -> torch.Tensor:
        value = self._needs.get(id(packed))
        if value is not None and not self._over:
            self.made[value].needs.append(float(len(self.moments)))
        return super()._unpack(packed)


@contextmanager
def regions(module: torch.nn.Module, entered: Callable[[], Region], left: Callable[[Region], None]) -> Iterator[None]:
    """In the block every call of a module that trains is a region of its own."""

    def called(module: torch.nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if not is_planned_call():
            return original(*args, **kwargs)
        with entered() as region:
            output = original(*args, **kwargs)
        left(region)
        return output

    with calling([module], called):
        yield


def _run(step: Step, funcs: Sequence[str], again: Collection[int], forward_alone: bool) -> _Recorder:
    """Run a step dry, recorded."""
    kind = None if step.place is None else step.device.type
    recorder = _Recorder(step, kind)

    def entered() -> Region:
        return Region(funcs, again, draws=False)

    with step.unchanged(), regions(step.module, entered, lambda region: recorder.region_ended()), recorder:
        if forward_alone:
            with torch.enable_grad():
                loss = step.forward()
            recorder.forward_ended(loss)
        else:
            loss = step.run(Mode("full"), recorder.forward_ended)
    recorder.finish(loss)
    return recorder


def recorded(step: Step, speed: Speed) -> Recording:
    """A step as its recorded calls; it is run dry, on tensors that hold no memory.

    Raises:
        DryRunError: it can't be.
    """
    with step.standing_in() as dry:
        full = _run(dry, (), (), forward_alone=False)
        if full.left and step.strategy != "ddp":  # a first step makes what later ones find
            full = _run(dry, (), (), forward_alone=False)
    calls = full.recorded[:-1]
    funcs = tuple(str(call.func) for call in calls)
    _forbid_changed(calls)
    replayable = {number for number, call in enumerate(calls) if call.replayable and call.makes}
    with step.standing_in() as dry:
        if full.left and step.strategy != "ddp":
            _run(dry, (), (), forward_alone=True)
        lean = _run(dry, funcs, replayable, forward_alone=True)
    return _put_together(full, lean, funcs, speed)


def _forbid_changed(calls: Sequence[_Call]) -> None:
    """A call that reads an argument which it, or a later call, writes to can't be run again."""
    written = {account: number for number, call in enumerate(calls) for account in call.writes}
    for number, call in enumerate(calls):
        if any(written.get(account, -1) >= number for account in call.outside):
            call.replayable = False


def _put_together(full: _Recorder, lean: _Recorder, funcs: tuple[str, ...], speed: Speed) -> Recording:
    calls = full.recorded[:-1]
    values = []
    for number, made in enumerate(full.made):
        alone = made.freed if made.outer else _alone(full, lean, number)
        needs = () if made.outer else tuple(sorted(made.needs))
        values.append(Value(made.call, made.size, made.born, alone, made.freed, needs, made.becomes))
    rest = np.asarray(full.moments, dtype=np.int64).copy()
    moments = np.arange(len(rest))
    for made, value in zip(full.made, values, strict=True):
        stop = full.made[made.becomes].born if made.becomes is not None else made.freed
        rest[(moments >= value.born) & (moments < stop)] -= made.size
    recorded_calls = RecordedCalls(
        costs=[speed.seconds(call.flops, call.moved) for call in calls],
        products=[call.flops > 0 for call in calls],
        reads=[tuple(call.reads) for call in calls],
        makes=[tuple(call.makes) for call in calls],
        replayable=[call.replayable and bool(call.makes) for call in calls],
        values=values,
        rest=rest,
        begins=[float(call.begins) for call in full.recorded],
        kinds=[call.kind for call in calls],
    )
    random = frozenset(
        n for n, call in enumerate(calls) if torch.Tag.nondeterministic_seeded in getattr(call.func, "tags", ())
    )
    return Recording(recorded_calls, funcs, tuple(c.path for c in calls), tuple(c.flops for c in calls), random)


def _alone(full: _Recorder, lean: _Recorder, number: int) -> float:
    """The moment of the full run until which the forward pass itself has use for a value.

    It is told by a call and how many births there had been in it when the value died in the lean run; a value that has
    been written to lives on in what it has become.
    """
    made = full.made[number]
    death = lean.deaths.get(full.birthplace[made.account]) if made.account in full.birthplace else None
    if death is None:
        return np.inf
    call, births = death
    after = full.births.get((call, births - 1))
    moment = float(full.recorded[min(call, len(full.recorded) - 1)].begins) - 0.25 if after is None else after + 0.25
    return max(moment, made.born + 0.25)
