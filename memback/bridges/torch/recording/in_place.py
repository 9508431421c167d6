"""What autograd writes into memory that it has already, as long as nobody watches.

While any dispatch mode is on, PyTorch takes every tensor for one of a subclass (``isTensorSubclassLike``), of which it
does not know whether it may be written to. So its engine adds up gradients out of place, and formulas of derivatives
fill new tensors by ops that copy them first. A watched step would hold more than an unwatched one: such ops are turned
back into what they are for the step that nobody watches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from memback.bridges.torch.recording.paths import directly_from

__all__ = ["alone", "as_filled", "as_unwatched"]

_aten = torch.ops.aten

_VALUES_OF_ROWS = ("Max", "Min", "Median", "Nanmedian", "Mode", "Kthvalue", "Topk", "Sort")
_LIMITS = ("Clamp", "ClampMax", "ClampMin", "Maximum", "Minimum", "Fmax", "Fmin", "Atan2")
_FILLS = {
    **{(node, _aten.scatter.src): _aten.scatter_.src for node in _VALUES_OF_ROWS},
    **{(node, _aten.scatter_add.default): _aten.scatter_add_.default for node in ("Gather", "Cummax", "Cummin")},
    **{(node, _aten.masked_fill.Scalar): _aten.masked_fill_.Scalar for node in _LIMITS},
    ("Index", _aten.index_put.default): _aten.index_put_.default,
    ("IndexSelect", _aten.index_add.default): _aten.index_add_.default,
    ("MaskedSelect", _aten.masked_scatter.default): _aten.masked_scatter_.default,
    ("Take", _aten.put.default): _aten.put_.default,
    ("Trace", _aten.index_fill.int_Scalar): _aten.index_fill_.int_Scalar,
}
"""By node: what its formula changes a new tensor by, and what it does it by where it may be written to."""
_CHANGES = {func for _, func in _FILLS}


def as_unwatched(func: Any, args: tuple[Any, ...], is_new: Callable[[torch.Tensor], bool]) -> Any:
    """The op that backward would call for this one if no mode were on.

    Args:
        func: an op that is called while backward runs.
        args: what it is given by position.
        is_new: whether a tensor's memory was made by the node of autograd's graph that is running.
    """
    if func is _aten.add.Tensor and _is_accumulation(args, is_new):
        return _aten.add_.Tensor
    return as_filled(func, args, is_new)


def as_filled(func: Any, args: tuple[Any, ...], is_new: Callable[[torch.Tensor], bool]) -> Any:
    """The op by which a formula of a derivative fills a new tensor if no mode is on, with the same arguments."""
    if func in _CHANGES and _is_own_memory(args) and is_new(args[0]):
        return _FILLS.get((_node_name(), func), func)
    return func


def _node_name() -> str:
    """``Gather`` of ``GatherBackward0``."""
    node = torch._C._current_autograd_node()
    return "" if node is None else str(node.name()).partition("Backward")[0]


def _is_own_memory(args: tuple[Any, ...]) -> bool:
    """Whether a formula of PyTorch's calls an op for a tensor that no other one shares its memory with."""
    counts, usual = _counts(args), alone()
    if counts is None or usual is None or counts[2] != usual[2] or torch.is_grad_enabled():
        return False
    return _is_plain(args[0]) and directly_from(torch.autograd.graph.__file__)


def _is_accumulation(args: tuple[Any, ...], is_new: Callable[[torch.Tensor], bool]) -> bool:
    """Whether the engine adds a gradient to one that it holds alone; see ``accumulate`` in its input_buffer.cpp."""
    if not _is_alone(args) or not args[0].numel():
        return False
    there, more = args[0], args[1]
    if not (_is_plain(there) and _is_dense(there) and isinstance(more, torch.Tensor)):
        return False
    if more.is_sparse:
        return is_new(there)  # as a dense gradient is then what is added to a sparse one
    return _is_plain(more) and (not is_new(there) or _gives_twice(torch._C._current_autograd_node()))


def _gives_twice(node: Any) -> bool:
    """Whether a node gives several gradients of the same tensor, so that what it made is added to what it made."""
    edges = () if node is None else node.next_functions
    return len({(id(function), number) for function, number in edges}) < len(edges)


def _is_plain(tensor: torch.Tensor) -> bool:
    kind = type(tensor)
    ordinary = kind is torch.Tensor or kind is torch.nn.Parameter or kind is FakeTensor
    strided = tensor.layout is torch.strided and not tensor.is_nested
    return ordinary and strided and not tensor._is_zerotensor() and not tensor.is_meta


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether elements lie one beside the other, each once, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


# -- who holds a tensor


def _is_alone(args: tuple[Any, ...]) -> bool:
    """Whether what calls an op is PyTorch's C++ in backward, and nobody else holds the op's first argument."""
    counts = _counts(args)
    if counts is None or counts != alone() or torch.is_grad_enabled():
        return False
    return directly_from(torch.autograd.graph.__file__)


def _counts(args: tuple[Any, ...]) -> tuple[int, int, int] | None:
    """How many hold the first argument, in Python and in C++, and its storage; None of what shows none."""
    if not isinstance(args[0], torch.Tensor) or args[0].layout is not torch.strided:
        return None
    try:
        storage = torch._C._storage_Use_Count(args[0].untyped_storage()._cdata)
        return sys.getrefcount(args[0]), args[0]._use_count(), storage
    except (AttributeError, NotImplementedError):
        return None  # of another version, or a tensor that wraps others


@cache
def alone() -> tuple[int, int, int] | None:
    """The counts of a gradient that the engine alone holds, as a mode sees them when the engine adds another to it.

    To be called once before anything is watched, because it runs backward itself.
    """
    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad(), _Alone() as mode:
        x = torch.ones(2, requires_grad=True).neg()
        torch.autograd.backward((x.neg() + x.neg()).sum())
    return mode.counts


class _Alone(TorchDispatchMode):
    """Looks who holds what the engine adds to."""

    counts: tuple[int, int, int] | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _aten.add.Tensor and torch._C._current_graph_task_id() != -1:
            self.counts = _counts(args)
        return func(*args, **kwargs)
