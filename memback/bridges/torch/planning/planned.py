"""Running a module's blocks in segments under ``torch.utils.checkpoint``, without a change to the code that calls them.

The first block of a segment, when it is called, runs all of them under a checkpoint; the calls of the others then find
that done. What stands for the values between them holds no memory and can be used for nothing but to be passed on: code
that does something else with it gets an error, never a wrong number.

What a checkpoint runs again leaves no trace: random numbers are drawn again as before, and buffers that the blocks
write to (running statistics) are what they were for the forward pass while it runs, and then what they were before it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from memback.bridges.torch.recording.body import Body, blocks_in
from memback.bridges.torch.recording.calls import Call, calling
from memback.bridges.torch.recording.disturbances import is_planned_call
from memback.bridges.torch.recording.flow import build, differs
from memback.bridges.torch.recording.storages import tensors
from memback.errors import MembackError, UsageError

__all__ = ["Running", "running"]


class _Unkept(torch.Tensor):
    """Stands for a value inside of a segment, which is not kept: it has a shape and a dtype, and no memory."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    between: str

    @staticmethod
    def of(tensor: torch.Tensor, between: str) -> _Unkept:
        made = torch.Tensor._make_wrapper_subclass(
            _Unkept, tensor.shape, dtype=tensor.dtype, device=tensor.device, requires_grad=tensor.requires_grad
        )
        made.between = between
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"<a value between {self.between}, which the plan does not keep>"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        between = next(tensor.between for tensor in tensors((args, kwargs or {})) if isinstance(tensor, _Unkept))
        raise MembackError(
            f"the value between {between} is used by other code ({func}), though the plan runs both in one segment and"
            " keeps nothing between them: make a plan from this way through the model, or name blocks that are apart"
        )


@dataclass
class _Awaited:
    """A call that is still to come of a block that has been run: what it must be given, and what it gives then."""

    outputs: Sequence[Any]
    outer: Mapping[int, Any]
    result: Any


@dataclass
class _Local(threading.local):
    """Where a thread is: backward runs in others."""

    inside: int = 0
    cursor: int = 0
    awaited: dict[int, _Awaited] = field(default_factory=dict)


class Running:
    """A body, as the blocks of one module carry it out."""

    def __init__(self, module: nn.Module, calls: Sequence[Call], body: Body) -> None:
        self._calls = calls
        self._modules = [submodule(module, call.path) for call in calls]
        self._owners = {path: submodule(module, path.rpartition(".")[0]) for call in calls for path in call.changes}
        self._segments = {next(blocks_in(item)): item for item in body if not isinstance(item, int)}
        self._originals = [block._call_impl for block in self._modules]
        self._local = _Local()
        self._root = module

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In the block the module runs so."""
        blocks = {id(block): block for block in self._modules if block is not self._root}
        with calling(list(blocks.values()), self._called), calling([self._root], self._begins):
            yield

    def _begins(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A forward pass begins; whatever became of the one before."""
        if not self._local.inside and torch.is_grad_enabled():
            self._local.cursor = 0
            self._local.awaited.clear()
        return original(*args, **kwargs)

    def _called(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        local = self._local
        if local.inside or not is_planned_call():
            return original(*args, **kwargs)
        if local.cursor >= len(self._calls) or self._modules[local.cursor] is not module:
            self._restart(module)
        index = local.cursor
        local.cursor += 1
        if index in local.awaited:
            return self._passed(index, args, kwargs)
        if index in self._segments:
            return self._segment(index, args, kwargs)
        with self._inside():
            return original(*args, **kwargs)

    def _restart(self, module: nn.Module) -> None:
        """Another forward pass begins, by a call of the first block; any other call out of turn is an error."""
        local = self._local
        if self._modules[0] is module:
            local.cursor = 0
            local.awaited.clear()
            return
        called = next(call.path for call, block in zip(self._calls, self._modules, strict=True) if block is module)
        turn = f"that of {self._calls[local.cursor].path}" if local.cursor < len(self._calls) else "none more"
        raise MembackError(
            f"{called} is called where the plan has {turn}: it was made for another way through the model. Make a plan"
            " for this one"
        )

    def _passed(self, index: int, args: Any, kwargs: Any) -> Any:
        call, awaited = self._calls[index], self._local.awaited.pop(index)
        assert call.flow is not None
        reason = differs(call.flow, (args, kwargs), awaited.outputs, awaited.outer)
        if reason is not None:
            raise MembackError(
                f"{call.path} is given {reason}, though the plan runs it in one segment with the block before it: it"
                " was made for another way through the model. Make a plan for this one"
            )
        return awaited.result

    # -- segments

    def _segment(self, index: int, args: Any, kwargs: Any) -> Any:
        """Run a segment's blocks, and await the calls of all but the first."""
        segment = self._segments[index]
        results: list[Any] = []
        outer = self._outer(index, args, kwargs) if len(list(blocks_in(segment))) > 1 else {}
        last = self._checkpointed(segment, args, kwargs, outer, results)
        numbers = list(blocks_in(segment))
        results[-1] = last
        for before, number in enumerate(numbers[1:]):
            given = list(tensors(results[before]))
            self._local.awaited[number] = _Awaited(given, outer, results[before + 1])
        return results[0]

    def _outer(self, index: int, args: Any, kwargs: Any) -> dict[int, Any]:
        """The tensors of a segment's first block that its other blocks are given, too.

        Raises:
            MembackError: the call is not as it was when the plan was made.
        """
        call, given = self._calls[index], list(tensors((args, kwargs)))
        outer = {name: given[at] for at, name in call.outer if at < len(given)}
        reason = None if len(outer) == len(call.outer) else f"{len(given)} tensors, fewer than then"
        if reason is None and call.flow is not None:
            reason = differs(call.flow, (args, kwargs), None, outer)
        if reason is not None:
            raise MembackError(
                f"{call.path} is given {reason}, where the plan runs it with the blocks behind it: it was made for"
                " another way through the model. Make a plan for this one"
            )
        return outer

    def _checkpointed(
        self, segment: Body, args: Any, kwargs: Any, outer: Mapping[int, Any], results: list[Any] | None
    ) -> Any:
        """Run a segment under a checkpoint.

        ``outer`` are the tensors that all its blocks are given. A stand-in for what each block gives is added to
        ``results``, where that is a list.
        """
        leaves, spec = tree_flatten((args, kwargs))
        distinct = {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}  # code may ask for identity
        numbers = {name: number for number, name in enumerate(distinct)}
        places = {at: numbers[id(leaf)] for at, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
        rest = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        shared = {name: numbers[id(tensor)] for name, tensor in outer.items() if id(tensor) in numbers}
        first = [results]  # what is run again fills no list

        def run(*given: Any) -> Any:
            filled = list(rest)
            for at, number in places.items():
                filled[at] = given[number]
            args, kwargs = tree_unflatten(filled, spec)
            del filled
            outer = {name: given[number] for name, number in shared.items()}
            del given
            with self._inside():
                return self._items(segment, args, kwargs, outer, first.pop() if first else None)

        given = list(distinct.values())
        changes = sorted({path for block in blocks_in(segment) for path in self._calls[block].changes})
        del leaves, distinct, args, kwargs
        stops = nullcontext() if not self._has_hooks(segment) else set_checkpoint_early_stop(False)
        with stops:
            return checkpoint(run, *given, use_reentrant=False, context_fn=lambda: self._contexts(changes))

    def _has_hooks(self, body: Body) -> bool:
        """Whether hooks would miss the end of a block that is not run again to its end."""
        parts = (part for block in blocks_in(body) for part in self._modules[block].modules())
        return any(part._forward_hooks or part._forward_pre_hooks for part in parts)

    def _items(self, body: Body, args: Any, kwargs: Any, outer: Mapping[int, Any], results: list[Any] | None) -> Any:
        """Run a body, whose first block is given the arguments."""
        output: Any = None
        for position, item in enumerate(body):
            number = next(blocks_in((item,)))
            if position:
                flow = self._calls[number].flow
                assert flow is not None
                args, kwargs = build(flow, list(tensors(output)), outer)
                del output
            if isinstance(item, int):
                output = self._originals[number](*args, **kwargs)
                if results is not None:
                    results.append(self._unkept(number, output))
            else:
                output = self._checkpointed(item, args, kwargs, outer, results)
        return output

    def _unkept(self, number: int, output: Any) -> Any:
        following = self._calls[number + 1].path if number + 1 < len(self._calls) else "the end"
        between = f"{self._calls[number].path} and {following}"
        return tree_map(lambda v: _Unkept.of(v, between) if isinstance(v, torch.Tensor) else v, output)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._local.inside += 1
        try:
            yield
        finally:
            self._local.inside -= 1

    def _contexts(self, changes: Sequence[str]) -> tuple[Any, Any]:
        """For the forward pass, and for what is run again."""
        return nullcontext(), _AsBefore({path: self._owners[path] for path in changes}) if changes else nullcontext()


@dataclass(frozen=True)
class _Content:
    """A buffer, and what was in it."""

    buffer: torch.Tensor
    content: torch.Tensor

    @staticmethod
    def of(path: str, owner: nn.Module) -> _Content:
        buffer = owner._buffers[path.rpartition(".")[2]]
        assert buffer is not None
        return _Content(buffer, buffer.detach().clone())

    def put(self, path: str, owner: nn.Module) -> None:
        with torch.no_grad():
            self.buffer.data.copy_(self.content)  # a change that autograd need not know of: it is undone
        owner._buffers[path.rpartition(".")[2]] = self.buffer


class _AsBefore(AbstractContextManager[None]):
    """While it is entered, once or several times, buffers are as when it was made; afterwards as when it was entered.

    Statistics of a normalisation are not put back for that time: while it trains, nothing depends on them.
    """

    def __init__(self, owners: Mapping[str, nn.Module]) -> None:
        self._owners = owners
        read = {path: owner for path, owner in owners.items() if not isinstance(owner, _NormBase)}
        self._before = {path: _Content.of(path, owner) for path, owner in read.items()}
        self._after: dict[str, _Content] = {}

    def __enter__(self) -> None:
        self._after = {path: _Content.of(path, owner) for path, owner in self._owners.items()}
        for path, content in self._before.items():
            content.put(path, self._owners[path])

    def __exit__(self, *_: object) -> None:
        for path, content in self._after.items():
            content.put(path, self._owners[path])
        self._after = {}


def submodule(module: nn.Module, path: str) -> nn.Module:
    """The submodule of a path.

    Raises:
        UsageError: there is none.
    """
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise UsageError(
            f"this plan was made for another model: there is no {path} in this {type(module).__name__}. Make a plan for"
            " this one"
        ) from None


def running(module: nn.Module, calls: Sequence[Call], body: Body) -> AbstractContextManager[None]:
    """In the block a module runs its blocks as a body says; afterwards it is as it was.

    Raises:
        UsageError: it has not these blocks, is compiled, or runs a plan already.
    """
    return Running(module, calls, body).applied()
