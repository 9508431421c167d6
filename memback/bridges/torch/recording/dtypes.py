"""What real kernels refuse for their inputs' types, and PyTorch's fake ones, which know shapes alone, let pass."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["refuse_types"]

_ABOUT_TYPES = re.compile(
    r"not implemented for '|same dtype|scalar type|types? .*should be the same|inputs not supported|dtype", re.DOTALL
)

_PLAIN = (FakeTensor, torch.Tensor, torch.nn.Parameter)

_MORE = frozenset(
    {
        *("baddbmm", "mv", "addmv", "dot", "silu", "leaky_relu", "softplus", "mish", "elu", "index_add", "cumsum"),
        *("nll_loss_forward", "nll_loss2d_forward", "binary_cross_entropy", "mse_loss", "smooth_l1_loss", "huber_loss"),
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "avg_pool2d", "_adaptive_avg_pool2d"),
        *("native_batch_norm", "_fused_rms_norm"),
    }
)
"""Ops besides PyTorch's core ones that may be asked."""

_verdicts: dict[Any, Exception | None] = {}
"""By op, types and numbers of dimensions: what the real kernel has against them."""


def refuse_types(func: Any, args: Any, kwargs: Any) -> None:
    """Raise what the op's kernel for CPUs raises on inputs of such types, if it does.

    It is asked once for each combination, with real tensors of at most two elements a dimension. Floating-point
    tensors of one type are not asked about. Neither are random ops, as they would draw, nor those of backward.

    Raises:
        RuntimeError: PyTorch's own.
    """
    leaves, form = tree_flatten((args, kwargs or {}))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    kinds = {tensor.dtype for tensor in tensors}
    if not kinds or (len(kinds) == 1 and tensors[0].is_floating_point()):
        return
    plain = all(type(t) in _PLAIN and t.device.type == "cpu" for t in tensors)
    if not plain or not _may_be_asked(func):
        return
    asked = (leaf for leaf in leaves if isinstance(leaf, torch.dtype))
    key = (func, *asked, *((t.dtype, t.dim()) for t in tensors))
    if key not in _verdicts:
        _verdicts[key] = _verdict(func, *tree_unflatten(list(map(_small, leaves)), form))
    verdict = _verdicts[key]
    if verdict is not None:
        raise type(verdict)(*verdict.args)  # a new one, as an exception holds the frames that it went through


def _may_be_asked(func: Any) -> bool:
    """Whether an op can be run on any values: some of a backward, say, lead it outside of memory."""
    if not isinstance(func, torch._ops.OpOverload):
        return False
    name = func.overloadpacket.__name__
    known = torch.Tag.core in func.tags or name in _MORE
    return known and "backward" not in name and torch.Tag.nondeterministic_seeded not in func.tags


def _small(leaf: Any) -> Any:
    """A real tensor in the place of any; and no size above 2, so that nothing large is made."""
    if isinstance(leaf, torch.Tensor):
        with no_dispatch():
            return torch.zeros([min(int(length), 2) for length in leaf.shape], dtype=leaf.dtype)
    return min(leaf, 2) if type(leaf) is int else leaf


def _verdict(func: Any, args: Any, kwargs: Any) -> Exception | None:
    with no_dispatch(), torch.no_grad():
        try:
            func(*args, **kwargs)
        except Exception as error:  # most are about shapes, which are others here
            return type(error)(str(error)) if _ABOUT_TYPES.search(str(error)) else None
    return None
