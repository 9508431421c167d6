"""Every op that PyTorch's own tests have samples for, run for real and dry, and the storages of both compared."""

from __future__ import annotations

import sys
import types
import unittest
import warnings
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from memback.bridges.torch.recording.dry_mode import DryMode
from memback.bridges.torch.recording.storages import key, storages, tensors


def samples() -> Sequence[Any]:
    """PyTorch's own samples of ops; they import a module of tests that nothing here needs."""
    if "expecttest" not in sys.modules:
        stand_in = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stand_in
        try:
            from torch.testing._internal.common_methods_invocations import op_db
        finally:
            del sys.modules["expecttest"]
    else:
        from torch.testing._internal.common_methods_invocations import op_db
    return op_db


class Beside(TorchDispatchMode):
    """Runs every op dry as well, with nothing known of its inputs' values, and notes where storages differ."""

    def __init__(self) -> None:
        super().__init__()
        self.compared = 0
        self.different: dict[str, Any] = {}
        self._met: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = list(tensors((args, kwargs)))
        dry = self._dry(func, args, kwargs) if self._is_new(func, args, kwargs, given) else None
        inputs = {key(storage): number for number, t in enumerate(given) for storage in storages(t)}
        out = func(*args, **kwargs)
        if dry is not None:
            self.compared += 1
            expected, found = _looks(out, inputs), _looks(dry, inputs)
            if expected != found:
                self.different.setdefault(str(func), (str(tree_map(_look, (args, kwargs))), expected, found))
        return out

    def _is_new(self, func: Any, args: Any, kwargs: Any, given: list[torch.Tensor]) -> bool:
        is_view = func.is_view or torch.Tag.inplace_view in func.tags
        if is_view or func.namespace == "prim" or any(tensor.layout is not torch.strided for tensor in given):
            return False
        call = func, str(tree_map(_look, (args, kwargs)))
        is_new = call not in self._met
        self._met.add(call)
        return is_new

    def _dry(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            return DryMode(FakeTensorMode(allow_non_fake_inputs=True))._imagine(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return None
        except Exception as error:
            self.different.setdefault(str(func), f"{type(error).__name__}: {error}")
            return None


def _look(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    return tuple(value.shape), value.stride(), str(value.dtype), value.is_conj()


def _looks(out: Any, inputs: dict[int, int]) -> list[Any]:
    """Of each tensor its shape, type, the strides that say something, and which storage it is in, of how many bytes."""
    made: dict[int, int] = {}
    looks: list[Any] = []
    for tensor in tensors(out):
        if tensor.layout is not torch.strided:
            looks.append(str(tensor.layout))
            continue
        storage = tensor.untyped_storage()
        at = inputs.get(key(storage))
        where = ("input", at) if at is not None else ("new", made.setdefault(key(storage), len(made)), storage.nbytes())
        strides = [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1] if tensor.numel() > 1 else []
        looks.append((tuple(tensor.shape), strides, str(tensor.dtype), where))
    return looks


def compare(dtypes: Sequence[torch.dtype], most: int, layouts: Sequence[str], in_turn: bool = False) -> Beside:
    """Run ``most`` samples of each op, forward and backward, in each dtype.

    Inputs have each of the layouts, or, ``in_turn``, one of them, which is the next for the next op.
    """
    beside = Beside()
    with warnings.catch_warnings(action="ignore"):
        for op, turn in zip(samples(), cycle(layouts), strict=False):
            for dtype in dtypes:
                for function, sample, layout in _of(op, dtype, most, [turn] if in_turn else layouts):
                    given = tree_map(
                        lambda v, how=layout: _laid_out(v, how), (sample.input, sample.args, sample.kwargs)
                    )
                    _run(beside, function, *given)
    return beside


def _of(op: Any, dtype: torch.dtype, most: int, layouts: Sequence[str]) -> Iterator[tuple[Any, Any, str]]:
    if not op.supports_dtype(dtype, "cpu"):
        return
    trains = op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")
    for layout in layouts:
        try:
            found = list(islice(op.sample_inputs("cpu", dtype, requires_grad=trains), most))
        except Exception:  # samples that need what is not there
            return
        for sample in found:
            yield op.op, sample, layout


def _run(beside: Beside, function: Any, first: Any, args: Any, kwargs: Any) -> None:
    try:
        with beside:
            outputs = tree_leaves(function(first, *args, **kwargs))
            trained = [t for t in outputs if isinstance(t, torch.Tensor) and t.requires_grad and not t.is_sparse]
            if trained:
                sum(t.abs().sum() for t in trained).backward()  # type: ignore[union-attr]
    except Exception:  # of a layout that the op does not take
        return


def _laid_out(value: Any, how: str) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.dim() < 2:
        return value
    plain = value.detach()
    if how == "transposed":
        plain = plain.transpose(0, -1).contiguous().transpose(0, -1)
    elif how == "channels last":
        last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(plain.dim())
        if last is None:
            plain = plain.transpose(-1, -2).contiguous().transpose(-1, -2)
        else:
            plain = plain.contiguous(memory_format=last)
    elif how == "in a larger one":
        plain = torch.cat([plain, plain], -1)[..., : plain.shape[-1]]
    else:
        return value
    return plain.requires_grad_(value.requires_grad)
