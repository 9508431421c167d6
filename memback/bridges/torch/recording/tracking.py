"""Watching any step that PyTorch runs: every storage from birth to death, by category, and the peak.

    with Tracker(arguments, module) as tracker:
        step()
    tracker.finish()
    tracker.saved_at_end_of_forward, tracker.peak, tracker.rows, tracker.events, tracker.buffers

The step is any code that runs ops and, if it trains, backward; on real tensors or, within a ``FakeTensorMode``, on such
as hold no memory. The words are the glossary's, a buffer is a storage, and the account is kept as
:class:`memback.profiling.accounts.Accounts` keeps it. What tells the tracker of things:

- a dispatch mode, of every op below autograd: what it gives anew is born, and a weak reference says when it dies;
- saved-tensor hooks, of what autograd keeps, and of when it lets go;
- global module hooks, of the module that is running.

Every op of the forward pass that makes a storage, keeps something or multiplies matrices has a row. In backward, what a
node of autograd's graph makes is workspace while the node runs, and a gradient if it outlives that. What is made while
a checkpoint runs again is recomputed. What is made below dispatch has no account, only an allocator can tell it: a
kernel's own scratch memory, and the state of the random stream that a checkpoint keeps (5,056 B on a CPU).
"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import checkpoint as _checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from memback.bridges.torch.recording.in_place import alone, as_unwatched
from memback.bridges.torch.recording.paths import ModulePaths, call_site, called_from, in_file
from memback.bridges.torch.recording.replay import current_call, listening
from memback.bridges.torch.recording.storages import key, storages, tensors
from memback.engine.site import Site
from memback.errors import MembackError
from memback.profiling.accounts import CATEGORIES, Account, Accounts, Category, Interval, Row
from memback.profiling.measuring import Peak

__all__ = ["Tracker"]

_BIRTH = {torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default}
"""Ops that are told of a tensor which has been made unseen, as torch.tensor does it."""

_NOWHERE = Interval("forward", "", "", (), ())

_OPAQUE = {
    torch.ops.aten._cudnn_rnn: "what cuDNN's recurrent layer keeps for itself",
    torch.ops.aten.miopen_rnn: "what MIOpen's recurrent layer keeps for itself",
}
"""Ops that give memory whose size only the library behind them knows: PyTorch's dry run takes it to be empty."""

_SEED = torch.ops.aten.ones_like.default
"""What backward begins with where it is given no gradient."""

_SETTLED_AFTER = 5.0
"""Seconds for which a backend is waited for, which keeps what it has been given, though it is done."""


@dataclass(slots=True, eq=False)
class _Held:
    """Something that autograd keeps: its account, the row of the op that keeps it, and its name there."""

    account: Account
    row: Row
    name: str = "saved"


class _Packed:
    """Stands for a saved tensor in autograd's graph, which owns it; with it goes the tensor."""

    __slots__ = ("_tracker", "held", "tensor", "version")

    def __init__(self, tracker: Tracker, tensor: torch.Tensor, held: list[_Held]) -> None:
        self._tracker = tracker
        self.tensor = tensor
        self.version = tensor._version
        self.held = held

    def __del__(self) -> None:
        self._tracker._released(self.held)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """Ranks are exchanging something: what is made for it has this category, and this row has made it."""

    category: Category
    row: Row


@dataclass(slots=True)
class _Highest:
    """The most bytes so far, where that was, and what they were; of ``pending`` it is not known yet."""

    bytes: int = 0
    interval: Interval = _NOWHERE
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    pending: list[Account] = field(default_factory=list)
    forward_over: bool = False


class Tracker(Accounts):
    """Keeps the account of the storages of whatever runs while it is entered. It is entered once.

    Args:
        arguments: tensors that are there before the step, by what they are called: ``parameter a.weight``, ``buffer
            a.mean``, ``input``. A storage that is first met as an op's input is an argument, too, called ``input``.
        module: whose submodules have names.
        retain_all: whether every storage that the forward pass makes is kept until the step's end (the notes, section
            4.3, read literally), and counts as saved.
        events: whether to keep the timeline.
        kind: the kind of device (``cuda``) whose memory alone is counted; by default all is.
        gradients: of parameters, that are there before the step, by the parameters' names: they count as gradients.

    Attributes:
        rows, events, buffers, flops, recomputed_flops, saved_at_end_of_forward: as in
            :class:`~memback.profiling.ledger.Ledger`; FLOPs are those of products of matrices, convolutions and
            attention.
        reduces_in_buckets: whether storages that backward is the first to meet are buckets, in which DDP reduces
            gradients; to be set before the step.
        told_of_forward: whether somebody says when the forward pass ends, or it lasts as long as the step; else it ends
            where backward first runs. To be set before the step.
        updates: whether the step has an update: what :meth:`update_begins` says is one, and all that is done with
            parameters and their gradients between backward and the next forward pass. To be set before the step.
        left: bytes of what the step has made and left behind, without gradients of leaves, by what has made it.
        unknown: what it met that PyTorch gives no true size of without memory, in words: figures are then too low.
    """

    def __init__(
        self,
        arguments: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]] = (),
        module: torch.nn.Module | None = None,
        retain_all: bool = False,
        events: bool = True,
        kind: str | None = None,
        gradients: Iterable[tuple[str, torch.Tensor]] = (),
    ) -> None:
        super().__init__(events=events)
        self._kind = kind
        pairs = list(arguments.items() if isinstance(arguments, Mapping) else arguments)
        self._parameters = [tensor for name, tensor in pairs if name.startswith("parameter ")]
        self._leaf_names = {id(tensor): name for name, tensor in pairs}
        self._paths = ModulePaths(module)
        self._retained: list[Any] | None = [] if retain_all else None
        self._bytes = 0
        self._highest = _Highest()
        self._fresh: list[Account] = []
        self._held: dict[int, _Held] = {}
        self._kept: list[_Held] = []
        self._nodes: dict[int, Row] = {}
        self._learnt: set[int] = set()
        self._leaves: dict[int, Any] = {}
        self._again: dict[int, Row] = {}
        self._unclaimed: int | None = None
        self._checkpoint: Row | None = None
        self._listed: set[int] = set()
        self._repeated: set[tuple[str, str, Site | None]] = set()
        self._node: tuple[int, int, int] | None = None
        self._node_row = self._start = Row("", "backward", 0, (), "", None)
        self._task = -1
        self._base = 0
        self._own = False
        self._over = False
        self._number: int | None = None
        self._numbered: dict[int, Row] = {}
        self._exchange: _Exchange | None = None
        self._in_flight: list[tuple[torch.Tensor, int]] = []
        self._gradient_bytes = 0
        self.unknown: set[str] = set()
        self.reduces_in_buckets = False
        self.told_of_forward = self.updates = False
        self._updating = 0
        self.left: dict[str, int] = {}
        for name, tensor in pairs:
            for storage in storages(tensor):
                if key(storage) not in self._accounts:
                    self._names[key(storage)] = name
                    self._open(key(storage), storage, storage.nbytes(), None)
        self._meet_gradients(gradients)

    def _meet_gradients(self, gradients: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in gradients:
            row = Row(name.rpartition(".")[0], "accumulate_grad", 0, (), "", None)
            for storage in self._counted(tensor):
                if key(storage) not in self._accounts:
                    self._open(key(storage), storage, storage.nbytes(), row, "gradient from", gradient=True)
                    self._bytes += storage.nbytes()
                    self._look()

    # -- life

    def __enter__(self) -> Tracker:
        alone()
        self._stack = ExitStack()
        self._stack.enter_context(self._paths)
        self._stack.enter_context(listening(self.numbered))
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack))
        self._stack.enter_context(_Dispatch(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._stack.close()
        if kind is not None:
            self.finish()

    def finish(self, result: Any = None) -> None:
        """The step is over: what dies from now on dies at other hands than the step's. Needed once, after the block.

        What it gives as its ``result`` is not left behind.
        """
        if self._over:
            return
        self._boundary()
        if self.saved_at_end_of_forward is None:
            self.forward_ended()
        self._over, self._keep_events = True, False
        self._retained = None
        self._measure_gradients()
        self._look_what_is_left(result)
        for held in self._kept:
            held.row.kept.append((held.name, held.account))
        self._mark_recomputed()
        self._held.clear()
        self._fresh.clear()

    def _measure_gradients(self) -> None:
        """Note the bytes of the parameters' gradients, which an update may give back before the step ends."""
        grads = [tensor.grad for tensor in self._parameters if tensor.grad is not None]
        size = sum({key(s): s.nbytes() for grad in grads for s in storages(grad)}.values())
        self._gradient_bytes = max(self._gradient_bytes, size)

    def _look_what_is_left(self, result: Any) -> None:
        """Note what outlives the step. What it kept in forward and leaves behind is state of its own, not saved."""
        left = self._left_behind(result)
        if left:
            gc.collect()  # as cycles of Python's keep what nobody has any more
            left = self._left_behind(result)
        for account in left:
            self.left[account.origin] = self.left.get(account.origin, 0) + account.bytes
        states = {id(held.account): held.account for held in self._kept if held.name == "kept" and held.account in left}
        self._kept = [held for held in self._kept if held.name != "kept" or id(held.account) not in states]
        for account in states.values():
            assert account.owner is not None
            assert self.saved_at_end_of_forward is not None
            account.owner.saved_bytes -= account.bytes
            self.saved_at_end_of_forward -= account.bytes
            if self._highest.forward_over:
                self._highest.parts["saved"] -= account.bytes
                self._highest.parts["outputs"] += account.bytes

    def _left_behind(self, result: Any) -> list[Account]:
        leaves = (*self._parameters, *(leaf for met in self._leaves.values() if (leaf := met()) is not None))
        grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
        known = {key(storage) for tensor in (*grads, *tensors(result)) for storage in storages(tensor)}
        alive = (a for a in self._accounts.values() if not a.argument and not a.closed and not a.role and a.bytes)
        return [account for account in alive if account.key not in known]

    def _mark_recomputed(self) -> None:
        """Tell the rows whose ops have run again: from the same line, or where there is no such, in the same module."""
        there = {(row.path, row.op, row.site) for row in self.rows}
        elsewhere = {(path, op) for path, op, site in self._repeated if (path, op, site) not in there}
        for row in self.rows:
            again = row.recomputed or (row.path, row.op, row.site) in self._repeated
            row.recomputed = again or (row.path, row.op) in elsewhere

    # -- what is known

    @property
    def peak(self) -> Peak:
        """The most bytes that were alive at once, above the arguments, and what they were."""
        parts = dict(self._highest.parts)
        parts["workspace"] = self._highest.bytes - sum(parts.values())
        return Peak(self._highest.bytes, self._highest.interval, parts)

    @property
    def live_bytes(self) -> int:
        """Bytes of the living storages that the step has made."""
        return self._bytes

    @property
    def saved_bytes(self) -> int:
        """Bytes of the distinct storages that autograd keeps at this moment, arguments excluded."""
        return self._totals["saved"]

    @property
    def parameter_gradient_bytes(self) -> int:
        return self._gradient_bytes

    # -- what the dispatch mode tells

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op, and see what comes of it."""
        if self._own or self._over or func.namespace == "prim":
            return func(*args, **kwargs)
        if self._phase != "forward" and not kwargs:
            func = as_unwatched(func, args, self._is_new)
        inputs = list(tensors((args, kwargs)))
        if self._exchange is not None:
            if any(key(s) not in self._accounts and s.nbytes() for tensor in inputs for s in storages(tensor)):
                return func(*args, **kwargs)  # on memory of the backend's own
            if func.namespace == "c10d":
                self._in_flight += [(tensor, _uses(tensor)) for tensor in inputs]
        row = self._begins(func, inputs)
        self._meet_inputs(func, inputs, row)
        out = func(*args, **kwargs)
        self._count_flops(func, args, kwargs, out, row)
        outputs = list(tensors(out))
        if outputs and not row.dtype:
            row.output_shape, row.dtype = tuple(outputs[0].shape), _name(outputs[0].dtype)
        for tensor in outputs:
            self._note_unknown(func, tensor)
            for storage in self._counted(tensor):
                self._meet(storage, row)
        return out

    def numbered(self, number: int) -> None:
        """The next call of the forward pass has this number in a plan."""
        self._number = number

    def _is_new(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's memory was made since the last boundary."""
        keys = {key(storage) for storage in storages(tensor)}
        return any(account.key in keys for account in self._fresh if not account.closed)

    def _note_unknown(self, func: Any, tensor: torch.Tensor) -> None:
        if isinstance(tensor, FakeTensor) and (
            tensor.is_sparse or (func._overloadpacket in _OPAQUE and self._kind is None)
        ):
            what = "a sparse tensor" if tensor.is_sparse else _OPAQUE[func._overloadpacket]
            self.unknown.add(f"{what} ({self._where[1]}, layer {self._where[0] or '(top)'})")

    def _begins(self, func: Any, inputs: list[torch.Tensor]) -> Row:
        if self._exchange is not None:
            return self._exchange.row
        task = torch._C._current_graph_task_id()
        if self.updates and self._is_update(func, inputs, task):
            return self._update_row(_op_name(func))
        if task == -1:
            if func is _SEED and in_file(torch.autograd.__file__):
                self._enter_backward(task)
                return self._node_row
            self._enter_forward()
            return self._forward_row(_op_name(func), inputs)
        self._enter_backward(task)
        if current_call() is not None:
            return self._replayed_row(_op_name(func))
        if self._recomputes():
            return self._recomputed_row(_op_name(func))
        self._phase = "backward"
        return self._node_row

    def _replayed_row(self, op: str) -> Row:
        """The row of a recorded call that a plan has run again."""
        self._boundary()
        self._phase = "recompute"
        row = self._numbered.get(current_call() or 0)
        if row is None:  # of a forward pass before this step
            row = Row(self._node_row.path, op, 0, (), "", None)
        row.recomputed = True
        self._where = (row.path, op)
        return row

    def _forward_row(self, op: str, inputs: list[torch.Tensor]) -> Row:
        self._boundary()
        number = torch._C._autograd._get_sequence_nr() - 1
        differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
        if differentiable and self._unclaimed == number:
            row = self._nodes[number]
            row.op, row.call = op, self._count(row.path, op)
        else:
            row = Row(self._paths.path, op, 0, (), "", call_site())
            if differentiable:
                self._nodes.setdefault(number, row)
        if self._number is not None:
            self._numbered[self._number], self._number = row, None
        self._unclaimed = self._checkpoint = None
        self._where = (row.path, op)
        return row

    def _recomputed_row(self, op: str) -> Row:
        self._boundary()
        self._phase = "recompute"
        path = self._paths.path if self._paths.depth > self._base else self._node_row.path
        row = Row(path, op, 0, (), "", call_site())
        row.recomputed = True
        if torch.is_grad_enabled():
            self._again.setdefault(torch._C._autograd._get_sequence_nr() - 1, row)
        self._repeated.add((path, op, row.site))
        self._where = (path, op)
        return row

    def _recomputes(self) -> bool:
        """Whether a checkpoint is running again: a module's forward, or ops under it, in the midst of backward."""
        return self._paths.depth > self._base or (torch.is_grad_enabled() and in_file(_checkpoint.__file__))

    def _count_flops(self, func: Any, args: Any, kwargs: Any, out: Any, row: Row) -> None:
        formula = flop_registry.get(func._overloadpacket)
        if formula is None or self._phase in ("backward", "update"):
            return
        flops = int(formula(*args, **kwargs, out_val=out))
        if self._phase == "recompute":
            self.recomputed_flops += flops
            return
        self.flops += flops
        row.flops += flops
        self._list(row)

    # -- phases

    def _enter_forward(self) -> None:
        if self._phase != "forward":
            self._boundary()
            self._phase, self._node, self._node_row = "forward", None, self._start

    def _enter_backward(self, task: int) -> None:
        """Backward is running: note which node."""
        if self._phase == "forward" or (self._phase == "update" and task != self._task):
            self._boundary()
            self._phase, self._base = "backward", self._paths.depth
            self._task = -1
            self._again.clear()
            if self.saved_at_end_of_forward is None and not self.told_of_forward:
                self.forward_ended()
        if self._task == -1:
            self._task = task
        node = torch._C._current_autograd_node()
        if node is not None:
            self._enter_node(node, task)
        self._where = (self._node_row.path, self._node_row.op)

    def _is_update(self, func: Any, inputs: list[torch.Tensor], task: int) -> bool:
        """Whether an op belongs to the update."""
        if self._paths.depth > (0 if task == -1 else self._base):
            return False
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            return False
        if self._updating or (func._schema.is_mutable and self._any_is(inputs[:1], gradient=False)):
            return True
        if task != -1 or self._phase in ("forward", "update"):
            return task == -1 and self._phase == "update"
        return self._any_is(inputs, gradient=True)

    def _any_is(self, inputs: list[torch.Tensor], gradient: bool) -> bool:
        """Whether any tensor is a parameter, or a gradient, if that counts as well."""
        accounts = (self._accounts.get(key(storage)) for tensor in inputs for storage in storages(tensor))
        found = (account for account in accounts if account is not None)
        return any(account.what.startswith("parameter") or (gradient and account.gradient) for account in found)

    def _update_row(self, op: str) -> Row:
        """The row of an op of the update, which is in no table."""
        self._boundary()
        if self._phase != "update":
            self._measure_gradients()
            self._phase, self._node = "update", None
        self._unclaimed = None
        row = Row("", op, 0, (), "", call_site())
        self._where = ("", op)
        return row

    def update_begins(self) -> None:
        """An optimiser begins to move parameters: in backward, too, where a hook on them has it do so."""
        self._updating += 1

    def update_ended(self) -> None:
        """It is done."""
        self._updating -= 1

    def _enter_node(self, node: Any, task: int) -> None:
        """Note the node, without keeping it: it may keep tensors."""
        variable = getattr(node, "variable", None)
        told = (task, node._sequence_nr(), id(variable))
        if told != self._node:
            self._boundary()
            self._node, self._node_row = told, self._row_of(node, variable, task)
            if variable is not None:
                self._leaves.setdefault(id(variable), weakref.ref(variable))
            elif node._sequence_nr() not in self._learnt:  # a node that runs backward itself is come back to
                self._learnt.add(node._sequence_nr())
                self._name_saved(node)

    def _row_of(self, node: Any, variable: Any, task: int) -> Row:
        """The row of the op whose gradient a node computes, or a stand-in for it."""
        if variable is not None:
            name = self._leaf_names.get(id(variable), "").removeprefix("parameter ")
            return Row(name.rpartition(".")[0], "accumulate_grad", 0, (), "", None)
        known = (self._nodes if task == self._task else self._again).get(node._sequence_nr())
        return Row("", _node_name(node), 0, (), "", None) if known is None else known

    def _boundary(self) -> None:
        """An op of forward, or a node of backward, is done: what it has made and is still there has its category."""
        if self._phase == "backward":
            for account in self._fresh:
                if not account.closed and not account.gradient and not account.role:
                    account.gradient = True
                    self._sort(account, "gradient")
        self._fresh.clear()
        for account in self._highest.pending:
            if account.category is not None:
                self._highest.parts[account.category] += account.bytes
        self._highest.pending = []

    def forward_ended(self, result: Any = None) -> None:
        """Take note of what is saved now, as what the forward pass has saved.

        To be told by who knows; else that moment is taken to be where backward first runs. With ``result``, whatever
        else is alive now counts as saved, too, under the name ``kept``: what a checkpoint's policy has put aside, a
        custom Function has in attributes, or other hooks have moved away is in no node of autograd's graph.
        """
        if result is not None:
            self._keep_rest({key(storage) for tensor in tensors(result) for storage in storages(tensor)})
        self._kept = list(self._held.values())
        by_row: dict[int, tuple[Row, list[Account]]] = {}
        for held in self._kept:
            by_row.setdefault(id(held.row), (held.row, []))[1].append(held.account)
        self._charge(by_row.values())

    def _keep_rest(self, given: set[int]) -> None:
        for number, account in list(self._accounts.items()):
            if account.owner is not None and not account.holders and not account.role and number not in given:
                self._hold(account, account.owner).name = "kept"

    # -- storages

    def _meet_inputs(self, func: Any, inputs: list[torch.Tensor], row: Row) -> None:
        parameters: dict[int, int] = {}
        for tensor in inputs:
            for storage in self._counted(tensor):
                account = self._accounts.get(key(storage))
                if account is None and func not in _BIRTH and storage.nbytes():
                    bucket = self.reduces_in_buckets and self._phase == "backward"
                    what = "gradient bucket" if bucket else ""
                    account = self._open(key(storage), storage, storage.nbytes(), None, what)
                if account is not None and account.argument and account.what.startswith("parameter"):
                    parameters[account.number] = account.bytes
        row.parameter_bytes = max(row.parameter_bytes, sum(parameters.values()))

    def _counted(self, tensor: torch.Tensor) -> list[Any]:
        """The storages of a tensor, where its device is one whose memory is counted."""
        return storages(tensor) if self._kind in (None, tensor.device.type) else []

    def _meet(self, storage: Any, row: Row) -> None:
        size = storage.nbytes()
        account = self._accounts.get(key(storage))
        if account is not None:
            if account.bytes != size:
                self._resized(account, size)
        elif size:
            self._birth(storage, size, row)

    def _birth(self, storage: Any, size: int, row: Row) -> None:
        if self._phase == "forward":
            self._list(row)
        what = "gradient from" if self._phase == "backward" else "output of"
        account = self._open(key(storage), storage, size, row, what, recomputed=self._phase == "recompute")
        self._fresh.append(account)
        if self._retained is not None and self._phase == "forward" and account.role is None:
            self._retained.append(storage)
            account.holders += 1
            self._sort(account, "hold")
            self._held[id(account)] = _Held(account, row, "out")
        self._bytes += size
        self._look()

    def _look(self) -> None:
        """Note the peak if this is higher than all before."""
        if self._bytes <= self._highest.bytes:
            return
        pending = [account for account in self._fresh if not account.closed]
        parts: dict[str, int] = {str(category): size for category, size in self._totals.items()}
        for account in pending:
            if account.category is not None:
                parts[account.category] -= account.bytes
        over = self.saved_at_end_of_forward is not None
        self._highest = _Highest(self._bytes, Interval(self._phase, *self._where, (), ()), parts, pending, over)

    def _resized(self, account: Account, size: int) -> None:
        """A storage has other bytes than before."""
        more = size - account.bytes
        if account.category is not None:
            self._totals[account.category] += more
            self._live += more
        account.bytes = size
        if not account.argument:
            self._bytes += more
            self._look()

    def _category(self, account: Account) -> Category | None:
        if self._exchange is not None and account.category is None and not account.argument:
            account.role = self._exchange.category  # for as long as it lives
        if account.role is not None:
            return account.role
        category = super()._category(account)
        if category == "outputs" and self._phase == "backward" and account.category is None:
            return None  # workspace, unless it outlives its node
        return category

    # -- what ranks exchange

    @contextmanager
    def exchanging(self, category: Category, op: str, module: torch.nn.Module | None) -> Iterator[None]:
        """What is made in the block is in ``category`` for as long as it lives, and stands in a row ``op`` of its own.

        Args:
            category: ``gathered`` or ``buckets``.
            op: what is done, as the row says it.
            module: for whose parameters; None at the top.
        """
        task = torch._C._current_graph_task_id()
        if task == -1:
            self._enter_forward()
        else:
            self._enter_backward(task)
            self._phase = "recompute" if self._recomputes() else "backward"
        self._boundary()
        path = self._paths.path if module is None else self._paths.name_of(module)
        before, where = self._exchange, self._where
        self._exchange = _Exchange(category, Row(path, op, 0, (), "", None))
        self._where = (path, op)
        try:
            yield
        finally:
            self._boundary()
            self._exchange, self._where = before, where

    def resized(self, storage: Any) -> None:
        """A storage has been given memory, or has given it back, without any op."""
        if self._own or self._over:
            return
        account, size = self._accounts.get(key(storage)), storage.nbytes()
        if account is None or size:
            self._meet(storage, self._resizing_row() if self._exchange is None else self._exchange.row)
        else:
            for number in [number for number, held in self._held.items() if held.account is account]:
                del self._held[number]
            self._died(account)  # though the storage lives on, and may be given memory anew

    def _resizing_row(self) -> Row:
        if self._phase == "backward":
            return self._node_row
        return Row(self._paths.path, "resize_", 0, (), "", call_site())

    def settle(self) -> None:
        """The collectives begun so far are done: have the backend let go of the buffers made for them.

        Its threads do so a moment later, which would make the account another one each time. They hold the tensors, or
        views of them.
        """
        flying, self._in_flight = self._in_flight, []
        until = time.monotonic() + _SETTLED_AFTER
        for tensor, uses in flying:
            accounts = (self._accounts.get(key(storage)) for storage in storages(tensor))
            if any(account is not None and account.role is not None for account in accounts):
                while (tensor._use_count() > 1 or _uses(tensor) > uses) and time.monotonic() < until:
                    time.sleep(0)

    def is_gradient(self, tensor: torch.Tensor) -> None:
        """What ranks have exchanged is a gradient from now on."""
        for storage in storages(tensor):
            account = self._accounts.get(key(storage))
            if account is not None and account.role is not None:
                account.role, account.gradient = None, True
                self._sort(account, "gradient")

    def _died(self, account: Account) -> None:
        if not account.closed and not account.argument and not self._over:
            self._bytes -= account.bytes
        super()._died(account)

    def _list(self, row: Row) -> None:
        """Have a row in the table."""
        if id(row) not in self._listed:
            self._listed.add(id(row))
            row.call = self._count(row.path, row.op) if row.op else 0
            self.rows.append(row)

    # -- what autograd keeps

    def _pack(self, tensor: torch.Tensor) -> Any:
        if self._over:
            return tensor.detach()
        self._own = True
        try:
            alias = tensor.detach()
        finally:
            self._own = False
        if torch._C._current_graph_task_id() != -1 and self._recomputes():
            return _Packed(self, alias, [])  # of what runs again, all is recomputed
        row = self._keeper()
        self._where = (row.path, row.op or self._where[1])
        held = []
        for storage in self._counted(tensor):
            account = self._accounts.get(key(storage))
            if account is None and storage.nbytes():
                account = self._open(key(storage), storage, storage.nbytes(), None)
            if account is not None and not account.argument and account.role is None:
                held.append(self._hold(account, row))
        return _Packed(self, alias, held)

    def _keeper(self) -> Row:
        """The row of the op that is keeping something: autograd has made its node, and has often not yet run it."""
        if called_from(_checkpoint.__file__):
            return self._checkpoint_row()
        number = torch._C._autograd._get_sequence_nr() - 1
        row = self._nodes.get(number)
        if row is None:
            row = self._nodes[number] = Row(self._paths.path, "", 0, (), "", call_site())
            self._unclaimed = number
        return row

    def _checkpoint_row(self) -> Row:
        """That of a checkpoint, which keeps its inputs itself, outside of any node, one after the other."""
        if self._checkpoint is None:
            self._checkpoint = Row(self._paths.path, "checkpoint", 0, (), "", call_site())
        return self._checkpoint

    def _hold(self, account: Account, row: Row) -> _Held:
        held = _Held(account, row)
        self._held[id(held)] = held
        if account.owner is not None:
            self._list(account.owner)
        self._list(row)
        account.holders += 1
        self._sort(account, "hold")
        return held

    def _released(self, held: list[_Held]) -> None:
        if self._over:
            return
        for one in held:
            self._held.pop(id(one), None)
            one.account.holders -= 1
            self._resort(one.account)

    def _unpack(self, packed: Any) -> torch.Tensor:
        if not isinstance(packed, _Packed):
            return packed  # kept after the step was over
        task = torch._C._current_graph_task_id()
        if task != -1 and not self._over:
            self._enter_backward(task)
        if packed.tensor._version != packed.version:
            raise MembackError(
                f"{self._what_is(packed)} was changed in place after autograd had saved it (version"
                f" {packed.tensor._version} instead of {packed.version}), so that backward can't be run: clone it first"
            )
        return packed.tensor

    def _what_is(self, packed: _Packed) -> str:
        for held in packed.held:
            where = f" (layer {held.row.path or '(top)'})"
            return f"what {held.row.op or 'an op'}{where} keeps, of shape {tuple(packed.tensor.shape)},"
        return f"a saved tensor of shape {tuple(packed.tensor.shape)}"

    def _name_saved(self, node: Any) -> None:
        """Learn from autograd's node what the op calls the tensors that it keeps."""
        for name in _saved_names(node.__class__):
            try:
                found = getattr(node, f"_raw_saved_{name}")
            except RuntimeError:  # it has let go of them
                return
            for saved in found if isinstance(found, (tuple, list)) else (found,):
                packed = getattr(saved, "data", None)  # older versions of PyTorch do not tell
                for held in packed.held if isinstance(packed, _Packed) else ():
                    held.name = name
                    if not held.row.op:
                        held.row.op = _node_name(node)
                        held.row.call = self._count(held.row.path, held.row.op)


class _Dispatch(TorchDispatchMode):
    """Hands every op to the tracker."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to hide from PyTorch's compiler, it would be loaded first

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._tracker.run(func, args, kwargs or {})


def _uses(tensor: torch.Tensor) -> int:
    """How many hold a tensor's storages: tensors, views among them, and a backend's threads."""
    return sum(torch._C._storage_Use_Count(key(storage)) for storage in storages(tensor))


@cache
def _saved_names(kind: Any) -> tuple[str, ...]:
    """What nodes of a kind call the tensors that they keep."""
    prefix = "_raw_saved_"
    return tuple(name.removeprefix(prefix) for name in dir(kind) if name.startswith(prefix))


@cache
def _op_name(func: Any) -> str:
    """``aten.addmm.default`` is ``addmm``, ``mine.op.default`` is ``mine.op``."""
    return str(func._overloadpacket).removeprefix("aten.")


def _node_name(node: Any) -> str:
    """``AddmmBackward0`` is ``Addmm``; a custom Function's node is called as the Function is."""
    name = str(node.name()).rpartition("::")[2]
    return name.rstrip("0123456789").removesuffix("Backward") or name


@cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
