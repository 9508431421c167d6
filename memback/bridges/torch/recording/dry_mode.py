"""What a dry run runs ops on: fake tensors, and real ones wherever the values are known.

In a dry run the user's own tensors stay the real ones that they are: code that asks what a tensor is gets the answer
that it gets in a real run. Each op is run in one of three ways:

- a view of a real tensor is a real view;
- an op whose inputs all have *known* values is run for real, if what it gives is small. Known are integers and truth
  values that the user gives, constants, and what is computed from nothing else (masks, positions, indices), so that
  decisions on them are those of the real run;
- every other op is run on stand-ins: PyTorch's fake tensors, one storage for each real one. It gives fake tensors and
  leaves real ones as they are; a real tensor that it writes to is of unknown value from then on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_map

from memback.bridges.torch.recording.corrections import corrected, instead
from memback.bridges.torch.recording.dtypes import refuse_types
from memback.bridges.torch.recording.storages import key, storages, tensors

__all__ = ["INDEXED", "LEAVES_VALUES", "MOST", "READS", "DryMode", "assuming", "in_dry_run", "is_empty", "written_by"]

MOST = 32 * 2**20
"""Bytes that an op on known values may give: a larger one is not run, as a dry run is to take no memory."""

_BIRTH = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)
"""Ops that are told of a tensor which has been made unseen, as torch.tensor does it."""

READS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.equal, torch.ops.aten.is_nonzero)
"""Ops that give a value and no tensor: they may look at any real tensor that has not been written to."""

LEAVES_VALUES = (torch.ops.aten._amp_foreach_non_finite_check_and_unscale_,)
"""Ops that leave what is known of their arguments true, though they write into them: gradients are finite."""

_WITHOUT_VALUES = ("empty", "new_empty", "_efficientzerotensor")
"""How names of ops begin whose results have no values, or no memory."""


class _Real(weakref.ref[Any]):
    """What a dry run knows of a real storage, which it refers to weakly.

    Its values are ``known``, or ``stale`` once it would have been written to; it was there before, or ``made`` here.
    """

    __slots__ = ("base", "known", "made", "number", "stale", "views")

    base: Any
    known: bool
    made: bool
    number: int
    stale: bool
    views: dict[Any, Any]

    @staticmethod
    def of(storage: Any, gone: Callable[[Any], None], known: bool) -> _Real:
        real = _Real(storage, gone)
        real.number, real.known = key(storage), known
        real.made = real.stale = False
        real.base, real.views = None, {}
        return real

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class DryMode(TorchDispatchMode):
    """Runs every op dry. It is entered once.

    Args:
        mode: in which fake tensors are made.
        unknown: real tensors whose values are not looked at, such as parameters.

    Attributes:
        assumed: the number that any floating-point one of unknown value is taken to be where code reads it; None where
            code that does so can't be run.
        made: a weak reference to each fake tensor that an op gave.
    """

    def __init__(self, mode: FakeTensorMode, unknown: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.mode = mode
        self.made: list[weakref.ref[Any]] = []
        self.assumed: float | None = None
        self._reals: dict[int, _Real] = {}
        self._real_of: dict[int, _Real] = {}
        self._before: list[tuple[Any, Any]] = []
        for tensor in unknown:
            if _is_plain(tensor):
                self._real(tensor).known = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to hide from PyTorch's compiler, it would be loaded first

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for storage, before in self._before:
            storage.copy_(before)
        self._before.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors((args, kwargs)))
        reals = [tensor for tensor in given if not isinstance(tensor, FakeTensor)]
        if not all(map(_is_plain, reals)) or not isinstance(func, torch._ops.OpOverload):
            with self.mode:
                return self._noted(func(*args, **kwargs))
        if len(reals) == len(given):
            if reals and (func.is_view or torch.Tag.inplace_view in func.tags):
                if func in _BIRTH:
                    self._born(reals)
                return func(*args, **kwargs)
            if self._may_run(func, reals, args, kwargs):
                return self._run(func, args, kwargs)
        if func is _NUMBER and self.assumed is not None and args[0].is_floating_point():
            return self.assumed
        if func is _PACKED and self._is_known(args[1]):
            return self._pack(*args)
        return self._imagine(func, *_with_known_indices(self, func, args, kwargs))

    def alive(self) -> list[torch.Tensor]:
        """The fake tensors made here that are still alive, and have changed places with no real one."""
        return [tensor for made in self.made if isinstance(tensor := made(), FakeTensor)]

    # -- for real

    def _may_run(self, func: Any, reals: list[torch.Tensor], args: Any, kwargs: Any) -> bool:
        """Whether all values that an op needs are known, and what it gives is small."""
        if func._overloadpacket in READS:
            return all(not self._real(tensor).stale for tensor in reals)
        if func.namespace not in ("aten", "prims") or torch.Tag.nondeterministic_seeded in func.tags:
            return False
        if not all(self._real(tensor).known for tensor in reals) or not (reals or _is_here(kwargs.get("device"))):
            return False
        try:
            with self.mode:
                out = func(*tree_map(self._stand_in, args), **tree_map(self._stand_in, kwargs))
        except (DataDependentOutputException, DynamicOutputShapeException):
            return True  # no larger than what it is given
        if is_empty(func) and any(t.is_floating_point() or t.is_complex() for t in tensors(out)):
            return False  # though integers are real from the first, as code may fill them in unseen
        return all(t.layout is torch.strided and t.untyped_storage().nbytes() <= MOST for t in tensors(out))

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        for tensor in written_by(func, args, kwargs):
            real = self._real(tensor)
            if not real.made and all(storage is not real() for storage, _ in self._before):
                self._before.append((real(), tensor.untyped_storage().clone()))
        before = {key(s) for tensor in tensors((args, kwargs)) for s in storages(tensor)}
        out = func(*args, **kwargs)
        self._born(tensor for tensor in tensors(out) if key(tensor.untyped_storage()) not in before)
        return out

    def _born(self, made: Iterable[torch.Tensor]) -> None:
        for tensor in made:
            real = self._real(tensor)
            real.known = real.made = True

    # -- on stand-ins

    def _imagine(self, func: Any, args: Any, kwargs: Any) -> Any:
        given: dict[int, torch.Tensor] = {}

        def fake(value: Any) -> Any:
            stand_in = self._stand_in(value)
            if stand_in is not value:
                given[id(stand_in)] = value
            return stand_in

        fakes, named = tree_map(fake, args), tree_map(fake, kwargs)
        with self.mode:
            run = instead(func)
            out = corrected(func, fakes, named, func(*fakes, **named) if run is None else run(*fakes, **named))
        refuse_types(func, fakes, named)
        for tensor in written_by(func, args, kwargs):
            if not isinstance(tensor, FakeTensor) and func._overloadpacket not in LEAVES_VALUES:
                real = self._real(tensor)
                real.known, real.stale = False, True

        def back(value: Any) -> Any:
            """The real tensor for what looks into a real one's stand-in."""
            if not isinstance(value, FakeTensor) or value.layout is not torch.strided:
                return value
            real = self._real_of.get(key(value.untyped_storage()))
            if real is None:
                return value
            return given[id(value)] if id(value) in given else _view(real(), value)

        return self._noted(tree_map(back, out))

    def _pack(self, padded: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> Any:
        """Sequences of known lengths end to end: how many there are at each step is known, too."""
        data, sizes = torch.ops.aten._pack_padded_sequence(torch.empty((*padded.shape[:2], 1)), lengths, batch_first)
        self._born([sizes])
        with self.mode:
            return self._noted((padded.new_empty((data.size(0), *padded.shape[2:]), device=padded.device), sizes))

    def _stand_in(self, tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor) or isinstance(tensor, FakeTensor):
            return tensor
        if not _is_plain(tensor) or tensor.layout is not torch.strided or tensor._is_zerotensor():
            return self.mode.from_tensor(tensor, static_shapes=True)
        real, bits = self._real(tensor), (tensor.is_conj(), tensor.is_neg())
        looks = (tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset(), *bits)
        if looks not in real.views:
            real.views[looks] = self._like(real, tensor, *bits)
        return real.views[looks]

    def _like(self, real: _Real, tensor: torch.Tensor, conjugated: bool, negated: bool) -> Any:
        size = tensor.untyped_storage().nbytes()
        with self.mode:
            if real.base is None:
                real.base = torch.empty(size, dtype=torch.uint8, device="cpu" if tensor.is_meta else tensor.device)
                self._real_of[key(real.base.untyped_storage())] = real
            flat = real.base[: size - size % tensor.element_size()].view(tensor.dtype)
            made = torch.as_strided(flat, tensor.size(), tensor.stride(), tensor.storage_offset())
            torch._C._set_conj(made, conjugated)
            torch._C._set_neg(made, negated)
        return made

    # -- storages

    def _is_known(self, tensor: Any) -> bool:
        is_real = isinstance(tensor, torch.Tensor) and not isinstance(tensor, FakeTensor)
        return is_real and _is_plain(tensor) and self._real(tensor).known

    def _real(self, tensor: torch.Tensor) -> _Real:
        """What is known of a real tensor's storage: of one that is met for the first time, integers, or one number."""
        storage = tensor.untyped_storage()
        found: _Real | None = self._reals.get(key(storage))
        if found is None:
            exact = not (tensor.is_floating_point() or tensor.is_complex())
            exact |= storage.nbytes() <= tensor.element_size() and not isinstance(tensor, torch.nn.Parameter)
            exact &= tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
            exact &= not tensor.requires_grad
            found = self._reals[key(storage)] = _Real.of(storage, self._gone, exact)
        return found

    def _gone(self, real: Any) -> None:
        number: int = real.number
        if self._reals.get(number) is real:
            del self._reals[number]
        if real.base is not None:
            self._real_of.pop(key(real.base.untyped_storage()), None)

    def _noted(self, out: Any) -> Any:
        self.made += [weakref.ref(tensor) for tensor in tensors(out) if isinstance(tensor, FakeTensor)]
        return out


def in_dry_run() -> bool:
    """Whether ops are run dry at this moment."""
    return _mode_now() is not None


@contextmanager
def assuming(number: float) -> Iterator[None]:
    """In the block a dry run, if this is one, takes every number of unknown value that code reads to be this one."""
    mode = _mode_now()
    if mode is None:
        yield
        return
    before, mode.assumed = mode.assumed, number
    try:
        yield
    finally:
        mode.assumed = before


def _mode_now() -> DryMode | None:
    return next((mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, DryMode)), None)


def _with_known_indices(mode: DryMode, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Known masks, by which a tensor of unknown values is indexed, as the indices that they say."""
    if func._overloadpacket not in INDEXED or len(args) < 2:
        return args, kwargs

    given: list[Any] = []
    for index in args[1]:
        is_mask = isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
        if is_mask and mode._is_known(index):
            there = args[0].shape[len(given) : len(given) + index.dim()]
            if index.shape != there:
                raise IndexError(f"a mask of shape {list(index.shape)} picks from dimensions of shape {list(there)}")
            given += index.nonzero().unbind(1)
        else:
            given.append(index)
    return (args[0], given, *args[2:]), kwargs


_NUMBER = torch.ops.aten._local_scalar_dense.default
_PACKED = torch.ops.aten._pack_padded_sequence.default
INDEXED = (
    torch.ops.aten.index,
    torch.ops.aten.index_put,
    torch.ops.aten.index_put_,
    torch.ops.aten._index_put_impl_,
    torch.ops.aten._unsafe_index,
)


def _view(storage: Any, like: torch.Tensor) -> torch.Tensor:
    made = torch.empty(0, dtype=like.dtype, device=storage.device)
    return made.set_(storage, like.storage_offset(), like.size(), like.stride())


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is no other library's, nor a wrapper of others."""
    return type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__


def _is_here(device: Any) -> bool:
    kind = torch.get_default_device().type if device is None else torch.device(device).type
    return kind == "cpu" or (kind == "cuda" and torch.cuda.is_available())


@cache
def is_empty(func: Any) -> bool:
    """Whether an op makes memory without writing values into it."""
    return bool(func._overloadpacket.__name__.startswith(_WITHOUT_VALUES))


@cache
def _writes(func: Any) -> tuple[tuple[int, str], ...]:
    """The position and name of each argument that an op writes to; normalisations do not say it of statistics."""
    return tuple(
        (number, argument.name)
        for number, argument in enumerate(func._schema.arguments)
        if (argument.alias_info is not None and argument.alias_info.is_write)
        or (argument.name in ("running_mean", "running_var") and "backward" not in func._schema.name)
    )


def written_by(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """The tensors among an op's arguments that it writes into."""
    for number, name in _writes(func):
        yield from tensors(args[number] if number < len(args) else kwargs.get(name))
