"""Automatic mixed precision by CUDA's lists of ops.

PyTorch's own kernels for it ask in C++ whether a tensor is on CUDA, and are told that it is on ``meta``: these stand
for them. The lists are those of ``ATen/autocast_mode.h``.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._pytree import tree_map

__all__ = ["LISTS", "autocasting"]

LISTS = {
    "lower": (
        "_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input"
        " conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm"
        " baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell"
        " rnn_tanh_cell rnn_relu_cell _scaled_dot_product_flash_attention scaled_dot_product_attention"
        " cudnn_convolution cudnn_convolution_transpose"
    ),
    "float32": (
        "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar"
        " pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim"
        " nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d"
        " hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss"
        " multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss"
        " binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d"
        " _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d"
        " _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d"
        " upsample_bicubic2d _upsample_bicubic2d_aa"
    ),
    "float32 out": (
        "prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm"
        " linalg_matrix_norm.str_ord sum sum.dim_IntList"
    ),
    "float32 norm": "norm.Scalar norm.ScalarOpt_dim",
    "widest": "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add",
}
"""Ops by what is done with floating-point arguments: cast to autocast's type, to float32, added up in float32 unless
another type is asked for (norms always), cast to the widest type among them."""

_WITH_DTYPE = {
    torch.ops.aten.norm.Scalar: torch.ops.aten.norm.ScalarOpt_dtype,
    torch.ops.aten.norm.ScalarOpt_dim: torch.ops.aten.norm.ScalarOpt_dim_dtype,
}
"""What stands for ops that are not told of a type to add up in."""

_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
_ASKS = "allow_override" in signature(torch.library.Library.impl).parameters
_OVERRIDING: Mapping[str, bool] = {"allow_override": True} if _ASKS else {}
"""What has a kernel take another one's place, where PyTorch wants to be told."""


@contextmanager
def autocasting() -> Iterator[None]:
    """In the block ``torch.autocast("cuda")`` casts tensors of the card."""
    cache: dict[int, tuple[Any, Any]] = {}
    library = torch.library.Library("aten", "IMPL")
    clear = torch.clear_autocast_cache

    def cleared() -> None:
        cache.clear()
        clear()

    casts = {"lower": _lower(cache), "float32": _float32, "widest": _widest}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")  # of kernels that are overridden
            for kind, names in LISTS.items():
                for name in names.split():
                    if (op := _overload(name)) is not None:
                        function = _cast(op, casts[kind]) if kind in casts else _summed(op)
                        library.impl(name, function, "AutocastCUDA", **_OVERRIDING)
        with patch.object(torch, "clear_autocast_cache", cleared):
            yield
    finally:
        library._destroy()
        cache.clear()


def _overload(name: str) -> Any:
    """An op that this PyTorch autocasts."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "AutocastCUDA"):
        return None
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _cast(op: Any, cast: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            args, kwargs = cast(args, kwargs)
            return op(*args, **kwargs)

    return call


def _is_cast(value: Any, to: torch.dtype) -> bool:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return is_float and value.device.type == "cuda" and value.dtype != to


def _lower(cache: dict[int, tuple[Any, Any]]) -> Callable[[Any, Any], tuple[Any, Any]]:
    def cast(args: Any, kwargs: Any) -> tuple[Any, Any]:
        dtype = torch.get_autocast_dtype("cuda")

        def one(value: Any) -> Any:
            if not _is_cast(value, dtype):
                return value
            cached = value.dtype == torch.float32 and value.requires_grad and value.is_leaf and not value._is_view()
            if not (cached and torch.is_autocast_cache_enabled()):
                return value.to(dtype)
            found = cache.get(id(value))
            if found is None or found[0]() is not value:
                found = cache[id(value)] = (weakref.ref(value), value.to(dtype))
            return found[1]

        return _backwards(one, args, kwargs)

    return cast


def _float32(args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _backwards(lambda value: value.float() if _is_cast(value, torch.float32) else value, args, kwargs)


def _backwards(one: Callable[[Any], Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Cast the last argument first, as PyTorch's compiler has C++ do it."""
    named = {name: tree_map(one, kwargs[name]) for name in reversed(kwargs)}
    return tuple([tree_map(one, value) for value in reversed(args)][::-1]), named


def _widest(args: Any, kwargs: Any) -> tuple[Any, Any]:
    dtype = torch.get_autocast_dtype("cuda")

    def widen(value: Any) -> Any:
        nonlocal dtype
        if _is_cast(value, dtype):
            dtype = torch.float32
        return value

    tree_map(widen, (args, kwargs))
    return tree_map(lambda value: value.to(dtype) if _is_cast(value, dtype) else value, (args, kwargs))


def _summed(op: Any) -> Callable[..., Any]:
    """An op that gives float32 if no other type is asked for."""
    op, plain = _WITH_DTYPE.get(op, op), op
    place = next(number for number, argument in enumerate(op._schema.arguments) if argument.name == "dtype")
    by_name = op._schema.arguments[place].kwarg_only

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            if not args[0].is_floating_point() or args[0].dtype == torch.float64 or args[0].device.type != "cuda":
                return plain(*args, **kwargs)
            if by_name:
                kwargs = {**kwargs, "dtype": kwargs.get("dtype") or torch.float32}
            else:
                filled = [argument.default_value for argument in op._schema.arguments[len(args) : place]]
                asked = args[place] if len(args) > place else None
                args = (*args[:place], *filled, asked or torch.float32, *args[place + 1 :])
            return op(*args, **kwargs)

    return call
