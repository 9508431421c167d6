"""A step's calls of modules, as one dry run shows them: which are blocks, and what flows from one to the next.

A *block* is a call of a submodule that may be run again in backward. Two neighbouring blocks are *linked* where what
the first one gives goes into the second and nowhere else, no op runs between them, and all else that the second takes
is known beforehand: what the first one takes as well (a mask that every block is given), or a constant. Linked blocks
can be run again together, keeping nothing between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from memback.bridges.torch.recording.disturbances import Before, is_planned_call
from memback.bridges.torch.recording.flow import Flow, NotPlainError, describe
from memback.bridges.torch.recording.paths import matches
from memback.bridges.torch.recording.storages import key, storages, tensors
from memback.errors import UsageError
from memback.plans.data import Data

__all__ = ["Call", "Trace", "calling", "check_all_visible", "check_visible", "record"]


class Call(Data, frozen=True, omit_defaults=False, rename={"flow": "arguments"}):
    """One block of a step.

    Attributes:
        path: of the submodule.
        number: which of its calls this is, from 0 on.
        linked: whether it can share a segment with the block before it.
        single: whether it gives one tensor, and not some in a tuple or the like.
        flow: what its arguments are and, where it is linked, how they come from the block before; None where they can't
            be described.
        outer: what each of its tensors is called that several linked blocks take, by the position of the tensor.
        changes: the model's buffers that it writes to, such as running statistics.
        writes_to: the number of the block whose output it writes to, in place, so that it can be run again only with
            that one; -1 where it writes to what no block has made, so that it can't be run again at all.
    """

    path: str
    number: int
    linked: bool = False
    single: bool = True
    flow: Flow | None = None
    outer: tuple[tuple[int, int], ...] = ()
    changes: tuple[str, ...] = ()
    writes_to: int | None = None


@dataclass(eq=False)
class _Node:
    """A call of any module: ``start`` and ``stop`` are numbers of ops, ``children`` the calls within it."""

    module: nn.Module
    path: str
    number: int
    parent: _Node | None
    start: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    stop: int = -1
    output: Any = None
    children: list[_Node] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)
    disturbs: str | None = None

    def lineage(self) -> Iterator[_Node]:
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def walk(self) -> Iterator[_Node]:
        yield self
        for child in self.children:
            yield from child.walk()


@contextmanager
def calling(modules: Sequence[nn.Module], called: Callable[..., Any]) -> Iterator[None]:
    """In the block each call of the modules is ``called(module, original, args, kwargs)``, with hooks inside of it.

    PyTorch's own hook for compiled calls is what is used: no attribute of the class changes, no state, and copies and
    pickles of a module go without it.

    Raises:
        UsageError: a module has been compiled or scripted.
    """
    with ExitStack() as stack:
        for module in modules:
            check_visible(module, type(module).__name__)
            if _HOOK in vars(module):
                raise UsageError(f"this {type(module).__name__} runs a plan already: revert that first")
            vars(module)[_HOOK] = _Calling(module, module._call_impl, called)
            stack.callback(vars(module).pop, _HOOK)
        yield


def check_all_visible(module: nn.Module) -> None:
    """:func:`check_visible` of a module and all within it."""
    for path, part in module.named_modules():
        check_visible(part, f"submodule {path}" if path else "the module")


def check_visible(module: nn.Module, name: str) -> None:
    """Refuse a module whose calls are not those of its Python code, so that they can't be looked into.

    Raises:
        UsageError: it is compiled or scripted; the message, which calls it ``name``, says what to give in its place.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            f"{name} is scripted: its calls are TorchScript's, which cannot be looked into; give the module as it was"
            " before torch.jit.script or torch.jit.trace"
        )
    hook = getattr(module, _HOOK, None)
    if hasattr(module, "_orig_mod"):
        before = "torch.compile (its _orig_mod)"
    elif hook is None or isinstance(hook, _Calling):
        return
    else:
        before = f"its compile() was called ({_HOOK} = None undoes that)"
    raise UsageError(
        f"{name} is compiled: the compiler arranges memory anew, in kernels that cannot be looked into; give the module"
        f" as it was before {before}"
    )


_HOOK = "_compiled_call_impl"


@dataclass(frozen=True)
class _Calling:
    """Stands where PyTorch has what is called in a compiled module's place."""

    module: nn.Module
    original: Callable[..., Any]
    called: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.called(self.module, self.original, args, kwargs)


class Trace(TorchDispatchMode):
    """The calls of modules in a forward pass, with the ops between them. Keeps all values, so it is for dry runs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.roots: list[_Node] = []
        self._names = {id(m): name for name, m in module.named_modules()}
        self._buffers = {key(s): name for name, buffer in module.named_buffers() for s in storages(buffer)}
        self._stack: list[_Node] = []
        self._numbers: Counter[int] = Counter()
        self._ops = 0
        self._uses: dict[int, list[tuple[int, _Node | None]]] = {}
        self._writes: list[tuple[int, set[int]]] = []
        self._births: dict[int, int] = {}
        self._alive: list[Any] = []
        self.checkpoints_itself = False
        self.fixed: dict[int, str] = {}
        """By number: why a block can't be run again, of each that can't."""

    # -- recording

    def called(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a call of a module, and note it; what runs without gradients needs no plan."""
        if not is_planned_call():
            self.checkpoints_itself = self.checkpoints_itself or torch.is_grad_enabled()
            return original(*args, **kwargs)
        parent = self._stack[-1] if self._stack else None
        held_args, held_kwargs = _as_now((args, kwargs))
        node = _Node(
            module, self._names[id(module)], self._numbers[id(module)], parent, self._ops, held_args, held_kwargs
        )
        self._numbers[id(module)] += 1
        (self.roots if parent is None else parent.children).append(node)
        before = {name: id(buffer) for name, buffer in module.named_buffers()}
        state = Before(module, args, kwargs)
        self._stack.append(node)
        try:
            output = original(*args, **kwargs)
        finally:
            self._stack.pop()
            node.stop = self._ops
        node.disturbs = state.changed()
        prefix = f"{node.path}." if node.path else ""
        node.replaced = {prefix + name for name, b in module.named_buffers() if before.get(name) != id(b)}
        node.output = _as_now(output)
        return output

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        where = self._stack[-1] if self._stack else None
        given = list(tensors((args, kwargs)))
        for tensor in given:
            self._uses.setdefault(id(tensor), []).append((self._ops, where))
        written = {key(s) for tensor in _written(func, args, kwargs) for s in storages(tensor)}
        if written:
            self._writes.append((self._ops, written))
        out = func(*args, **kwargs)
        met = {key(s) for tensor in given for s in storages(tensor)}
        for tensor in tensors(out):
            for storage in storages(tensor):
                if key(storage) not in met:
                    self._births.setdefault(key(storage), self._ops)
        self._alive += [given, out]
        self._ops += 1
        return out

    # -- what it shows

    def blocks(self, patterns: Sequence[str] | None, output: Any) -> list[Call]:
        """The blocks in the order of their calls.

        Args:
            patterns: of paths of submodules, as in a shell; without them the tree of modules decides.
            output: what the step gave.

        Raises:
            UsageError: there are none, or none for a pattern.
        """
        roots = [node for node in self.roots if node.module is self.module] or self.roots
        nodes = _matching(roots, patterns) if patterns is not None else [b for root in roots for b in _expanded(root)]
        nodes = [node for node in nodes if next(tensors(node.output), None) is not None]
        if not nodes:
            own = ", apart from those under checkpoints that it has itself" if self.checkpoints_itself else ""
            raise UsageError(
                f"{type(self.module).__name__} calls no submodules that could be blocks{own}; name those that are to be"
                " run again by patterns of their paths, as in blocks=['encoder.layer.*']"
            )
        self.nodes = nodes
        self._given = {id(tensor) for tensor in tensors(output)}
        calls: list[Call] = []
        run = _Names()
        for i, node in enumerate(nodes):
            flow = self._flow(i, run) if i else None
            linked = flow is not None
            run = run if linked else _Names()
            outer = run.take(node, nodes[i - 1] if linked else None)
            flow = flow if linked else _described(node, {}, run)
            single = isinstance(node.output, torch.Tensor)
            writes = self._written_in(node)
            changes = {self._buffers[k] for k in writes & self._buffers.keys()} | node.replaced
            births = [self._births.get(k, -1) for k in writes - self._buffers.keys()]
            writes_to = min((self._block_at(birth) for birth in births if birth < node.start), default=None)
            if writes_to == -1:
                self.fixed[i] = "writes, in place, to what was there before the blocks"
            disturbs = next((inner.disturbs for inner in node.walk() if inner.disturbs), None)
            if disturbs is not None:
                writes_to, self.fixed[i] = -1, disturbs
            calls.append(Call(node.path, node.number, linked, single, flow, outer, tuple(sorted(changes)), writes_to))
        return calls

    def ops_before(self, index: int) -> int:
        """How many ops run between the block before (or the start) and a block; or after the last block."""
        stop = self.nodes[index - 1].stop if index else 0
        return (self.nodes[index].start if index < len(self.nodes) else self._ops) - stop

    def _flow(self, i: int, run: _Names) -> Flow | None:
        """How the block's arguments come from the one before, or None where they are not linked."""
        before, node = self.nodes[i - 1], self.nodes[i]
        if self.ops_before(i):
            return None
        outputs = list(tensors(before.output))
        if not all(self._only_used_by(tensor, i) for tensor in outputs):
            return None
        numbers = {id(tensor): number for number, tensor in enumerate(outputs)}
        if not any(id(tensor) in numbers for tensor in tensors((node.args, node.kwargs))):
            return None
        return _described(node, numbers, run)

    def _only_used_by(self, tensor: torch.Tensor, i: int) -> bool:
        """Whether block i alone is given the tensor, until it is through; what it gives on is its own output then."""

        def gives(node: _Node) -> bool:
            return any(out is tensor for out in tensors(node.output))

        allowed = {self.nodes[i], *takewhile(gives, reversed(self.nodes[:i]))}
        passed_on = gives(self.nodes[i])
        return all(
            (passed_on and op >= self.nodes[i].stop)
            or (where is not None and any(node in allowed for node in where.lineage()))
            for op, where in self._uses.get(id(tensor), ())
        ) and (passed_on or id(tensor) not in self._given)

    def _block_at(self, op: int) -> int:
        return next((i for i, node in enumerate(self.nodes) if node.start <= op < node.stop), -1)

    def _written_in(self, node: _Node) -> set[int]:
        return {k for op, keys in self._writes if node.start <= op < node.stop for k in keys}


def _as_now(value: Any) -> Any:
    """The tensors in lists and dicts, in others that nobody changes."""
    return tree_map(lambda leaf: leaf, value)


class _Names:
    """Numbers for the tensors from elsewhere that a run of linked blocks is given."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}

    def take(self, node: _Node, before: _Node | None) -> tuple[tuple[int, int], ...]:
        """(position, number) of each such tensor of a block; a first block has names for all, a later one no new."""
        mine = list(tensors((node.args, node.kwargs)))
        chained = set() if before is None else {id(tensor) for tensor in tensors(before.output)}
        if before is None:
            for tensor in mine:
                self.known.setdefault(id(tensor), len(self.known))
        named = [(at, self.known[id(t)]) for at, t in enumerate(mine) if id(t) not in chained]
        self.known = {id(mine[at]): number for at, number in named}
        return tuple(named)


def _described(node: _Node, outputs: dict[int, int], run: _Names) -> Flow | None:
    try:
        return describe(node.args, node.kwargs, outputs, run.known)
    except NotPlainError:
        return None


@contextmanager
def record(module: nn.Module) -> Iterator[Trace]:
    """Record the calls of modules in the block, which runs forward once, dry."""
    trace = Trace(module)
    with calling(list(module.modules()), trace.called), trace:
        yield trace


# -- which calls are blocks


def _matching(roots: Sequence[_Node], patterns: Sequence[str]) -> list[_Node]:
    found: list[_Node] = []
    unused = set(patterns)

    def visit(node: _Node, within: bool) -> None:
        hits = [pattern for pattern in patterns if node.path and matches(node.path, pattern)]
        unused.difference_update(hits)
        if hits and not within:
            found.append(node)
        for child in node.children:
            visit(child, within or bool(hits))

    for root in roots:
        visit(root, False)
    for pattern in patterns:
        if pattern in unused:
            called = sorted({node.path for root in roots for node in root.walk() if node.path})
            raise UsageError(
                f"no call of a submodule matches blocks pattern {pattern!r}; there are {', '.join(called[:12])}"
                + (", …" if len(called) > 12 else "")
            )
    return found


def _expanded(root: _Node) -> list[_Node]:
    """The blocks of a call: its calls within, where it is a chain of them or leads to one."""
    members = {
        id(member)
        for owner in root.module.modules()
        if isinstance(owner, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
        for member in owner.children()
    }

    def is_chain(node: _Node) -> bool:
        """A Sequential, or one whose own calls are of members of its lists."""
        return isinstance(node.module, nn.Sequential) or sum(id(c.module) in members for c in node.children) > 1

    def leads_to_chain(node: _Node) -> bool:
        return is_chain(node) or any(
            leads_to_chain(child) for child in node.children if id(child.module) not in members
        )

    def blocks(node: _Node, top: bool) -> Iterator[_Node]:
        inside = is_chain(node) if id(node.module) in members else leads_to_chain(node)
        if node.children and (top or inside) and (top or not _is_block(node, members)):
            for child in node.children:
                yield from blocks(child, False)
        else:
            yield node

    found = list(blocks(root, True))
    return [] if found == [root] else found


def _is_block(node: _Node, members: set[int]) -> bool:
    """A member of a list is one block, unless it is nothing but a Sequential."""
    return id(node.module) in members and not isinstance(node.module, nn.Sequential)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The tensors that an op writes to: those its schema names, and a normalisation's running statistics."""
    for number, argument in enumerate(func._schema.arguments):
        statistic = argument.name in _STATISTICS and _trains(func, args, kwargs)
        if statistic or (argument.alias_info is not None and argument.alias_info.is_write):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            yield from tensors(value)


_STATISTICS = ("running_mean", "running_var")


def _trains(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a normalisation updates its running statistics; its schema does not say that it writes to them."""
    if "backward" in func._schema.name:
        return False
    for number, argument in enumerate(func._schema.arguments):
        if argument.name in ("training", "train"):
            return bool(args[number] if number < len(args) else kwargs.get(argument.name))
    return True
