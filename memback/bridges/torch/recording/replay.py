"""Recompute saved tensors of a PyTorch step from its recorded aten calls. Needs PyTorch alone.

In the forward pass of a module, a dispatch mode sees every aten call. A call that a program names is *recorded*: the
call itself, and where its inputs come from. When autograd saves what such a call has made, it saves that *recipe*
instead of the tensor. When backward asks for the tensor, the recipe is followed, from what is kept; what it makes on
the way stays for as long as another saved tensor needs it, and each value is computed once.

No Python of the model runs a second time: key-value caches, hooks and side effects happen once. Random calls draw the
same numbers again. Whatever a recorded call read is held by reference; if it has been changed in place since, there is
an error in place of a wrong gradient. A forward pass with other calls than the program's keeps all that follows.

(JAX's ``ad_checkpoint`` transposes a recorded program likewise; Chen et al. 2016, arXiv 1604.06174.)
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map

__all__ = [
    "RANDOM_STATE",
    "Region",
    "changed_names",
    "changed_places",
    "current_call",
    "is_numbered",
    "listening",
    "statistics_places",
]

RANDOM_STATE = 5056
"""Bytes of the state of the CPU's random stream, which each recorded random call keeps."""

_NORMS = {f"aten::{name}" for name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")} | {
    f"aten::_{name}" for name in ("native_batch_norm_legit", "batch_norm_with_update")
}
"""Ops that update running statistics, their fourth and fifth argument, on which nothing depends while they train."""

_running = threading.local()
_listeners: list[Callable[[int], None]] = []


def current_call() -> int | None:
    """The number of the call that this thread recomputes, if any."""
    number: int | None = getattr(_running, "number", None)
    return number


@contextmanager
def listening(listener: Callable[[int], None]) -> Iterator[None]:
    """In the block a listener is told the number of each call of a region's forward pass before it runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def is_numbered(func: Any) -> bool:
    """Whether a call has a number: none that makes a view, as autograd does at will, or only asks PyTorch something."""
    return isinstance(func, torch._ops.OpOverload) and func.namespace != "prim" and not func.is_view


def statistics_places(func: Any, args: Sequence[Any]) -> tuple[int, ...]:
    """The places of running statistics that a call updates and does not read."""
    return (3, 4) if func._schema.name in _NORMS and len(args) > 5 and args[5] else ()


def changed_places(func: Any, args: Sequence[Any]) -> list[int]:
    """The places of the arguments by position that a call writes to, but for running statistics."""
    places = zip(range(len(args)), func._schema.arguments, strict=False)
    written = (i for i, argument in places if argument.alias_info is not None and argument.alias_info.is_write)
    return [i for i in written if i not in statistics_places(func, args)]


def changed_names(func: Any, kwargs: Any) -> list[str]:
    """The arguments by name that a call writes to."""
    arguments = func._schema.arguments
    return [a.name for a in arguments if a.name in kwargs and a.alias_info is not None and a.alias_info.is_write]


class _Value:
    """A storage that a recorded call makes: how, and its tensor while it is there again."""

    __slots__ = ("__weakref__", "memo", "packs", "recipe", "users")

    def __init__(self, recipe: _Recipe) -> None:
        self.recipe = recipe
        self.memo: torch.Tensor | None = None
        self.packs = 0
        """How many saved tensors look into it."""
        self.users = 0
        """How many recorded calls that will be recomputed, and have not been, read it."""

    def settle(self) -> None:
        """Let go of the tensor if nothing needs it any more."""
        if not self.packs and not self.users:
            self.memo = None


class _Place:
    """An input that a recorded call has made, as a view of that storage."""

    __slots__ = ("dtype", "offset", "size", "stride", "value")

    def __init__(self, value: _Value, tensor: torch.Tensor) -> None:
        self.value = value
        self.size, self.stride, self.offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        self.dtype = tensor.dtype

    def of(self, base: torch.Tensor) -> torch.Tensor:
        same = base.size() == self.size and base.stride() == self.stride and base.dtype == self.dtype
        if same and base.storage_offset() == self.offset:
            return base
        if base.dtype != self.dtype:
            base = torch.as_strided(base, (base.untyped_storage().nbytes() // base.element_size(),), (1,), 0)
            base = base.view(self.dtype)
        return torch.as_strided(base, self.size, self.stride, self.offset)


class _Kept:
    """An input that is there: an argument of the step, or what another call has made and the program keeps."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.version = _version(tensor)

    def get(self, func: Any) -> torch.Tensor:
        if _version(self.tensor) != self.version:
            raise RuntimeError(
                f"an input of {func}, of shape {tuple(self.tensor.shape)}, was changed in place after the forward pass"
                " and is needed to recompute a saved tensor: clone it before, or have the plan keep what depends on it"
            )
        return self.tensor


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # nobody can write to an inference tensor in a step


class _Recipe:
    """A recorded call: the op and where its inputs come from."""

    __slots__ = (
        "args",
        "changes",
        "func",
        "grad",
        "kwargs",
        "number",
        "outs",
        "random",
        "sources",
        "statistics",
        "written",
    )

    def __init__(self, region: Region, number: int, func: Any, args: Any, kwargs: Any) -> None:
        self.number, self.func, self.grad = number, func, torch.is_grad_enabled()
        self.sources: list[_Value] = []
        self.outs: list[weakref.ref[_Value] | None] = []
        self.written: list[tuple[int, weakref.ref[_Value]]] = []
        self.random = _random_state(func, args, kwargs) if region.draws else None
        self.changes, self.statistics = changed_places(func, args), statistics_places(func, args)
        self.args, self.kwargs = tree_map(lambda leaf: self._source(region, leaf), (args, kwargs))

    def _source(self, region: Region, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        value = region.value_of(leaf)
        if value is None:
            return _Kept(leaf)
        self.sources.append(value)
        return _Place(value, leaf)

    def run(self, keep_graph: bool) -> None:
        """Compute what the call has made once more. What it read is let go of unless backward may come again."""
        func = self.func

        def given(leaf: Any) -> Any:
            if isinstance(leaf, _Place):
                memo = leaf.value.memo
                assert memo is not None
                return leaf.of(memo)
            return leaf.get(func) if isinstance(leaf, _Kept) else leaf

        args = list(self.args)
        for place in self.statistics:
            if isinstance(args[place], _Kept):
                args[place] = args[place].tensor.clone()
        args, kwargs = tree_map(given, (args, self.kwargs))
        bases: dict[int, torch.Tensor] = {}
        for place in self.changes:
            bases[place] = self._base(self.args[place].value, keep_graph)
            args[place] = self.args[place].of(bases[place])
        with torch.set_grad_enabled(self.grad), torch._C._AutoDispatchBelowAutograd(), _drawing(self.random):
            out = func(*args, **kwargs)  # as in the forward pass: some ops give less where gradients are off
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        for reference, tensor in zip(self.outs, made, strict=True):
            _give(reference, tensor)
        for place, reference in self.written:
            _give(reference, bases[place])
        if not keep_graph:
            self.args, self.kwargs = None, None

    def values(self) -> Iterator[_Value]:
        """Those that it makes and something still needs."""
        for reference in (*self.outs, *(reference for _, reference in self.written)):
            value = None if reference is None else reference()
            if value is not None:
                yield value

    def _base(self, value: _Value, keep_graph: bool) -> torch.Tensor:
        """What the call writes to: the memory of an input that nothing else needs, or a copy of that memory."""
        base = value.memo
        assert base is not None
        if value.users > 1 or value.packs or keep_graph:
            whole = torch.as_strided(base, (base.untyped_storage().nbytes() // base.element_size(),), (1,), 0)
            base = torch.as_strided(whole.clone(), base.size(), base.stride(), base.storage_offset())
        return base


def _give(reference: weakref.ref[_Value] | None, tensor: torch.Tensor) -> None:
    value = None if reference is None else reference()
    if value is not None:
        value.memo = tensor


def _random_state(func: Any, args: Any, kwargs: Any) -> tuple[Any, torch.Tensor] | None:
    """Of a call that draws random numbers: its generator, or else its device, and the state of that."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    generator = kwargs.get("generator")
    if generator is not None:
        return generator, generator.get_state()
    device = next((leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)), None)
    if device is None or device.type == "cpu":
        return None, torch.get_rng_state()
    return device, torch.get_device_module(device).get_rng_state(device)


@contextmanager
def _drawing(random: tuple[Any, torch.Tensor] | None) -> Iterator[None]:
    """In the block random numbers are drawn as from a recorded state, and go on afterwards as if nothing had been."""
    if random is None:
        yield
        return
    source, state = random
    if isinstance(source, torch.Generator):
        read, write = source.get_state, source.set_state
    elif source is None:
        read, write = torch.get_rng_state, torch.set_rng_state
    else:
        module = torch.get_device_module(source)
        read = lambda: module.get_rng_state(source)  # noqa: E731
        write = lambda state: module.set_rng_state(state, source)  # noqa: E731
    before = read()
    write(state)
    try:
        yield
    finally:
        write(before)


class _Packed:
    """Stands for a saved tensor in autograd's graph, which lets go of it when backward has been there."""

    __slots__ = ("place",)

    def __init__(self, place: _Place) -> None:
        self.place = place
        place.value.packs += 1

    def __del__(self) -> None:
        self.place.value.packs -= 1
        self.place.value.settle()


class Region(TorchDispatchMode):
    """One forward pass whose calls are recorded as a program says. To be entered once, round the module's call.

    Args:
        funcs: the names of all calls of the forward pass, in order, as ``str(func)`` has them.
        again: the numbers of those that are recomputed when backward needs what they made.
        draws: whether random streams are read; not in a dry run.

    Attributes:
        lost: the number of the first call that is another one than the program's, from which on everything is kept.
    """

    def __init__(self, funcs: Sequence[str], again: Collection[int], draws: bool = True) -> None:
        super().__init__()
        self.draws, self.lost = draws, None
        self._funcs, self._again = funcs, again
        self._number = 0
        self._own = False
        self._values: dict[int, tuple[Any, _Value]] = {}
        self._recorded: list[_Recipe] = []

    lost: int | None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Region:
        self._outer = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        super().__enter__()
        _running.open = _open() + 1
        return self

    def __exit__(self, *error: Any) -> None:
        _running.open = _open() - 1
        super().__exit__(*error)
        self._hooks.__exit__(*error)
        self._count_users()
        self._values.clear()

    def _count_users(self) -> None:
        """Know of each value how many calls will read it when they are recomputed."""
        needed: set[int] = set()
        for recipe in reversed(self._recorded):
            if any(value.packs or id(value) in needed for value in recipe.values()):
                for source in recipe.sources:
                    source.users += 1
                    needed.add(id(source))
        self._recorded.clear()

    # -- forward

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._own or not is_numbered(func) or torch._C._current_graph_task_id() != -1:
            return func(*args, **kwargs)
        number, self._number = self._number, self._number + 1
        if self.lost is None and (number >= len(self._funcs) or self._funcs[number] != str(func)):
            self.lost = number
        for listener in _listeners:
            listener(number)
        changes = changed_places(func, args) if func._schema.is_mutable else []
        named = changed_names(func, kwargs) if func._schema.is_mutable else []
        recorded = self.lost is None and number in self._again and not named
        if recorded and all(self._is_made(args[place]) for place in changes):
            recipe = _Recipe(self, number, func, args, kwargs)
            out = func(*args, **kwargs)
            self._record(recipe, args, kwargs, out)
            return out
        out = func(*args, **kwargs)
        for leaf in tree_leaves([*(args[place] for place in changes), *(kwargs[name] for name in named)]):
            self._values.pop(_storage(leaf) or 0, None)
        return out

    def _is_made(self, argument: Any) -> bool:
        return isinstance(argument, torch.Tensor) and self.value_of(argument) is not None

    def _record(self, recipe: _Recipe, args: Any, kwargs: Any, out: Any) -> None:
        read = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            fresh = _storage(tensor) not in (None, *read)
            recipe.outs.append(self._made(recipe, tensor) if fresh else None)
        for place in recipe.changes:
            recipe.written.append((place, self._made(recipe, args[place])))
        self._recorded.append(recipe)

    def _made(self, recipe: _Recipe, tensor: torch.Tensor) -> weakref.ref[_Value]:
        value = _Value(recipe)
        self._values[_storage(tensor) or 0] = StorageWeakRef(tensor.untyped_storage()), value
        return weakref.ref(value)

    def value_of(self, tensor: torch.Tensor) -> _Value | None:
        """What a recorded call has made that a tensor looks into."""
        storage = _storage(tensor)
        found = self._values.get(storage) if storage is not None else None
        return None if found is None else found[1]

    def _pack(self, tensor: torch.Tensor) -> Any:
        value = self.value_of(tensor)
        if value is not None:
            return _Packed(_Place(value, tensor))
        self._own = True
        try:
            return tensor.detach() if self._outer is None else self._outer[0](tensor)
        finally:
            self._own = False

    # -- backward

    def _unpack(self, packed: Any) -> torch.Tensor:
        if not isinstance(packed, _Packed):
            return packed if self._outer is None else self._outer[1](packed)
        value = packed.place.value
        if value.memo is None:
            _compute(value)
        assert value.memo is not None
        return packed.place.of(value.memo)


def _keeps_graph() -> bool:
    """Whether backward may come to the same saved tensors again, or to others with the same sources."""
    if _open() or torch._C._current_graph_task_id() == -1:
        return True
    return bool(torch._C._autograd._get_current_graph_task_keep_graph())


def _open() -> int:
    """How many regions of this thread are being recorded."""
    number: int = getattr(_running, "open", 0)
    return number


def _compute(value: _Value) -> None:
    """Have a value's tensor, by following its recipe and those of what it is made from."""
    todo: dict[int, _Recipe] = {}
    waiting = [value.recipe]
    while waiting:
        recipe = waiting.pop()
        if recipe.number not in todo:
            todo[recipe.number] = recipe
            waiting += [source.recipe for source in recipe.sources if source.memo is None]
    uses = Counter(id(source) for recipe in todo.values() for source in recipe.sources)
    keeps = _keeps_graph()
    before = current_call()
    disabled = torch._C._DisableAutocast()
    with torch.no_grad(), disabled:
        for number in sorted(todo):
            recipe = todo.pop(number)
            _running.number = number
            try:
                recipe.run(keeps)
            finally:
                _running.number = before
            for source in recipe.sources:
                uses[id(source)] -= 1
                source.users -= source.users > 0
                if not uses[id(source)]:
                    source.settle()
            for made in recipe.values():
                if made is not value and not uses[id(made)]:
                    made.settle()


def _storage(tensor: Any) -> int | None:
    """What tells the storage of a plain tensor from every other; None of any other tensor."""
    if not isinstance(tensor, torch.Tensor) or is_traceable_wrapper_subclass(tensor):
        return None
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None
