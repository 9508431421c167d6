"""Running ops as CUDA would run them, on tensors that hold no memory.

Every tensor of the card is one of PyTorch's fake tensors with the dispatch keys of CUDA: autograd, autocast and Python
code take it for one on ``cuda:0``. C++ code that asks where it is hears ``meta``, because a CPU build of PyTorch has no
guard for CUDA's devices, and its autograd engine no thread; what it then makes on ``meta`` is on the card as well.

Values are known as in :mod:`memback.bridges.torch.recording.dry_mode`: of integers, truth values and whatever is
computed from them alone. They are kept on the CPU, beside the storage of the card that they are the values of.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.optim import optimizer
from torch.utils._pytree import tree_map

from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.known import takes_nothing_else
from memback.bridges.torch.device.libraries import uses_cublas, workspace_bytes
from memback.bridges.torch.device.memory import Memory
from memback.bridges.torch.device.registry import KERNELS
from memback.bridges.torch.recording.corrections import instead
from memback.bridges.torch.recording.dry_mode import INDEXED, LEAVES_VALUES, MOST, READS, DryMode, is_empty, written_by
from memback.bridges.torch.recording.in_place import _is_alone, _is_dense, alone, as_filled
from memback.bridges.torch.recording.paths import call_site, in_file
from memback.bridges.torch.recording.results import run_again
from memback.bridges.torch.recording.storages import key, storages, tensors
from memback.engine.site import short_path

__all__ = ["CUDA", "DeviceMode"]

CUDA = torch.device("cuda:0")
_NOWHERE = torch.device("meta")
_DEVICE = torch.ops.prim.device.default
_aten = torch.ops.aten
_ADD = _aten.add.Tensor
_IS_PINNED = _aten.is_pinned.default
_NUMBER = torch.ops.aten._local_scalar_dense.default
_HERE = ("cuda", "meta")
_TAKE_ANY = (*INDEXED, torch.ops.aten._to_copy, torch.ops.aten.copy_)
"""Ops that take tensors of the CPU's beside those of the card."""


class DeviceMode(DryMode):
    """Runs every op as on a card. It is entered once, within its ``mode``.

    Args:
        mode: in which fake tensors are made.
        card: what the step runs on.

    Attributes:
        memory: what has been asked for of the card's.
        assumed: the number that any floating-point one of unknown value is taken to be, be it read, or a tensor of no
            dimension with which code goes on to compute; None where code that asks for it can't be run.
        read: where code has asked for a number that is ``assumed``, or computed from such, optimisers apart.
        sent: the keys of real storages that code has itself copied to the card.
        unmodelled: ops of which it is not known what they take on CUDA, and what is not known of them.
    """

    def __init__(self, mode: FakeTensorMode, card: Card) -> None:
        super().__init__(mode)
        self.card = card
        self.memory = Memory()
        self.assumed: float | None = None
        self.read: set[str] = set()
        self.sent: set[int] = set()
        self.unmodelled: dict[str, str] = {}
        self._values: dict[int, tuple[Any, torch.Tensor]] = {}
        self._guessed: set[int] = set()
        self._workspaces: set[bool] = set()
        self._makers: dict[int, int] = {}
        alone()
        self._moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __exit__(self, *args: Any) -> None:
        with unset_fake_temporarily():
            super().__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            return _NOWHERE
        if func is _IS_PINNED:
            return True
        kwargs = kwargs or {}
        if func is _ADD and torch._C._current_graph_task_id() != -1 and _is_alone(args) and self._adds_up(args):
            func = _aten.add_.Tensor  # what holds a reference to its first argument comes after this
        elif torch._C._current_graph_task_id() != -1 and not kwargs:
            func = as_filled(func, args, self._is_of_node)
        if not isinstance(func, torch._ops.OpOverload):
            return self._noted(func(*args, **kwargs))
        device = kwargs.get("device")
        if device is not None and torch.device(device).type in _HERE:
            kwargs = {**kwargs, "device": CUDA}
        given = list(tensors((args, kwargs)))
        if not any(isinstance(tensor, FakeTensor) for tensor in given) and kwargs.get("device") != CUDA:
            return self._on_cpu(func, given, args, kwargs)
        if func._overloadpacket in READS and self._all_known(given):
            self._note_read(given)
            return self._valued(func, args, kwargs)
        if func is _NUMBER and self.assumed is not None and given[0].is_floating_point():
            self._note_read(None)
            return self.assumed
        return self._on_card(func, given, args, kwargs)

    def _is_of_node(self, tensor: torch.Tensor) -> bool:
        """Whether it was made by the node that is running."""
        return self._makers.get(key(tensor.untyped_storage())) == _node_now()

    def _adds_up(self, args: Any) -> bool:
        """Whether the engine adds a gradient to one of another node that it holds alone, as it does in place."""
        there, more = args
        if not (isinstance(there, FakeTensor) and isinstance(more, FakeTensor)) or there.shape != more.shape:
            return False
        if there.dtype != more.dtype or there.layout is not torch.strided or not _is_dense(there):
            return False
        maker = self._makers.get(key(there.untyped_storage()))
        return maker is not None and maker != _node_now()

    # -- values

    def give_value(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Say what is in a tensor of the card, and with it in its storage."""
        storage = tensor.untyped_storage()
        with unset_fake_temporarily():
            whole = torch.empty(storage.nbytes(), dtype=torch.uint8)
            made = _looking_into(whole, tensor)
            made.copy_(value)
        self._values[key(storage)] = (weakref.ref(storage, self._forget), whole)

    def value_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The values of a tensor, where they are known: on the CPU, and the same memory for the same storage."""
        if not isinstance(tensor, FakeTensor):
            return tensor
        if tensor.layout is not torch.strided or type(tensor) is not FakeTensor:
            return None
        found = self._values.get(key(tensor.untyped_storage()))
        if found is None:
            return None
        with unset_fake_temporarily():
            return _looking_into(found[1], tensor)

    def _forget(self, storage: Any) -> None:
        for number, (known, _) in list(self._values.items()):
            if known is storage:
                del self._values[number]
                self._guessed.discard(number)

    def _all_known(self, given: Iterable[torch.Tensor]) -> bool:
        return all(
            not isinstance(t, FakeTensor) or (t.layout is torch.strided and key(t.untyped_storage()) in self._values)
            for t in given
        )

    def _valued(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an op gives for the values of its arguments."""

        def value(given: Any) -> Any:
            return self.value_of(given) if isinstance(given, torch.Tensor) else given

        args, kwargs = tree_map(value, args), tree_map(value, kwargs)
        if kwargs.get("device") == CUDA:
            kwargs["device"] = torch.device("cpu")
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    # -- where ops run

    def _note_read(self, given: list[torch.Tensor] | None) -> None:
        """Code asks for a number: note where, if it is one that has been assumed."""
        guessed = given is None or any(key(t.untyped_storage()) in self._guessed for t in given)
        if guessed and not in_file(optimizer.__file__ or ""):
            self.read.add(short_path(call_site()))

    def _on_cpu(self, func: Any, given: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        """An op on the CPU's own tensors, for real if it is small."""
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if not (func.is_view or torch.Tag.inplace_view in func.tags) and func._overloadpacket not in READS:
            try:
                out = func(*args, **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException):
                out = ()
            large = any(t.untyped_storage().nbytes() > MOST for t in tensors(out) if t.layout is torch.strided)
            if large or (seeded and not list(written_by(func, args, kwargs))):
                return self._noted(out)
            if seeded:
                return out
        with unset_fake_temporarily():
            return self._run(func, args, kwargs)

    def _on_card(self, func: Any, given: list[torch.Tensor], args: Any, kwargs: Any) -> Any:
        known = self._all_known(given) and torch.Tag.nondeterministic_seeded not in func.tags
        known = known and func.namespace in ("aten", "prims")
        onto = any(t.device.type == "cuda" for t in given) and func._overloadpacket not in _TAKE_ANY

        def fake(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
                return value
            return self._on_the_card(value) if onto and value.dim() else self.mode.from_tensor(value)

        if func._overloadpacket is _aten._to_copy:
            self.sent |= {key(t.untyped_storage()) for t in given if not isinstance(t, FakeTensor)}
        fakes, named = args, kwargs
        if not all(isinstance(tensor, FakeTensor) for tensor in given):
            fakes, named = tree_map(fake, args), tree_map(fake, kwargs)
        if func._overloadpacket in INDEXED:
            fakes = self._with_indices(fakes)
        before = {key(s) for t in tensors((fakes, named)) for s in storages(t)}
        out = self._run_op(func, fakes, named, known)
        fresh = self._births(out, before)
        self._note_values(func, args, kwargs, out, fresh, known)
        if fakes is not args or named is not kwargs:
            out = tree_map(self._back(args, kwargs, fakes, named), out)
        return self._noted(out)

    def _run_op(self, func: Any, args: Any, kwargs: Any, known: bool) -> Any:
        if uses_cublas(func):
            return self._with_workspace(func, args, kwargs)
        kernel = KERNELS.get(func) or KERNELS.get(func._overloadpacket)
        if kernel is not None:
            return kernel(self, func, *args, **kwargs)
        if not takes_nothing_else(func):
            self.unmodelled.setdefault(func._overloadpacket.__name__, "whether its kernel takes memory of its own")
        run = instead(func)
        try:
            return run_again(self.mode, func, args, kwargs) if run is None else run(*args, **kwargs)
        except DynamicOutputShapeException:
            if not known:
                raise
            return self._as_valued(func, args, kwargs)

    def _with_workspace(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A product by cuBLAS, which each thread gives a workspace before its first one; backward has its own."""
        out = run_again(self.mode, func, args, kwargs)
        self._births(out, set())
        thread = torch._C._current_graph_task_id() != -1
        if thread not in self._workspaces:
            self._workspaces.add(thread)
            self.memory.take(workspace_bytes(self.card))
        return out

    def _as_valued(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Tensors of the card like those that an op gives for known values, of which alone the sizes depend."""

        def like(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=CUDA)

        return tree_map(like, self._valued(func, args, kwargs))

    def _with_indices(self, args: Any) -> Any:
        """Masks of known values that index, as the indices which CUDA makes of them."""
        indices: list[Any] = []
        for index in args[1]:
            if (
                isinstance(index, torch.Tensor)
                and index.dtype in (torch.bool, torch.uint8)
                and self._all_known([index])
            ):
                found = self.run(torch.ops.aten.nonzero.default, index)
                indices += self.run(torch.ops.aten.unbind.int, found, 1)
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])

    def run(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run another op, from within one."""
        return self.__torch_dispatch__(func, (), args, kwargs)

    def empty(self, size: Iterable[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the card's, for a kernel."""
        made = torch.empty(tuple(size), dtype=dtype, device=CUDA)
        self.memory.meet(made.untyped_storage())
        return made

    def meet(self, out: Any) -> None:
        """Note what an op gives, before it gives back what it has taken."""
        self._births(out, set())

    def _on_the_card(self, tensor: torch.Tensor) -> torch.Tensor:
        """What stands on the card for a real tensor that a module keeps in none of its buffers."""
        found = self._moved.get(id(tensor))
        if found is None:
            made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=CUDA)
            self.memory.meet(made.untyped_storage())
            if not tensor.is_floating_point():
                self.give_value(made, tensor)
            found = self._moved[id(tensor)] = (tensor, made)
        return found[1]

    def met_outside(self) -> list[torch.Tensor]:
        """The real tensors that ops have taken together with such of the card, as if they were there."""
        return [tensor for tensor, _ in self._moved.values()]

    def let_go(self) -> None:
        """Hold no tensor any more."""
        self._moved.clear()

    def _births(self, out: Any, before: set[int]) -> list[torch.Tensor]:
        fresh = []
        for tensor in tensors(out):
            if isinstance(tensor, FakeTensor) and tensor.device.type == "cuda":
                for storage in storages(tensor):
                    self.memory.meet(storage)
                    if key(storage) not in before:
                        fresh.append(tensor)
                        self._makers[key(storage)] = _node_now()
        return fresh

    def _note_values(self, func: Any, args: Any, kwargs: Any, out: Any, fresh: list[Any], known: bool) -> None:
        written = [t for t in written_by(func, args, kwargs) if isinstance(t, FakeTensor)]
        off_card = [t for t in tensors(out) if isinstance(t, FakeTensor) and t.device.type == "cpu"]
        fits = all(t.layout is torch.strided and t.untyped_storage().nbytes() <= MOST for t in (*fresh, *off_card))
        if not known or not fits or not (written or fresh or off_card):
            for tensor in written:
                if func._overloadpacket not in LEAVES_VALUES:
                    self._values.pop(key(tensor.untyped_storage()), None)
            if not known and self.assumed is not None:
                self._guess(fresh)
            return
        if is_empty(func) and any(t.is_floating_point() for t in fresh):
            return
        values = list(tensors(self._valued(func, args, kwargs)))
        if any(key(s) in self._guessed for t in tensors((args, kwargs)) for s in storages(t)):
            self._guessed |= {key(t.untyped_storage()) for t in (*fresh, *written)}
        if fresh or off_card:
            for tensor, value in zip(tensors(out), values, strict=True):
                if isinstance(tensor, FakeTensor) and key(tensor.untyped_storage()) not in self._values:
                    self.give_value(tensor, value)

    def _guess(self, fresh: list[torch.Tensor]) -> None:
        """Take numbers to be what is assumed of them, so that decisions on what is computed from them agree."""
        for tensor in fresh:
            if tensor.dim() == 0 and tensor.is_floating_point() and tensor.layout is torch.strided:
                with unset_fake_temporarily():
                    value = torch.full((), self.assumed, dtype=tensor.dtype)
                self.give_value(tensor, value)
                self._guessed.add(key(tensor.untyped_storage()))

    def _back(self, args: Any, kwargs: Any, fakes: Any, named: Any) -> Any:
        """The real tensor for one that stands for it."""
        originals = {
            id(fake): real
            for fake, real in zip(tensors((fakes, named)), tensors((args, kwargs)), strict=False)
            if fake is not real
        }
        return lambda value: originals.get(id(value), value)


def _node_now() -> int:
    """The node of autograd's graph that is running; -1 in the forward pass."""
    node = torch._C._current_autograd_node()
    return -1 if node is None else int(node._sequence_nr())


def _looking_into(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    made = torch.empty(0, dtype=like.dtype)
    return made.set_(whole.untyped_storage(), like.storage_offset(), like.size(), like.stride())
