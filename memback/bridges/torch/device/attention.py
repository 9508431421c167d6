"""Which kernel attention runs in on a card, and what it keeps."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch

from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.current import card_now, note_unmodelled
from memback.bridges.torch.device.registry import composite

_aten = torch.ops.aten
_HALVES = (torch.float16, torch.bfloat16)
_EFFICIENT_GROUPS = torch.__version__ >= "2.14"
"""Whether the efficient kernel takes several heads of queries to one of keys."""


@composite("scaled_dot_product_attention")
def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Take the kernel that the card would take."""
    kind = _chosen(card_now(), query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    keeps = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    if kind == "cudnn":
        note_unmodelled("scaled_dot_product_attention", "what cuDNN's attention takes as workspace")
        return _aten._scaled_dot_product_cudnn_attention(
            query, key, value, attn_mask, keeps, dropout_p, is_causal, False, scale=scale
        )[0]
    mask = _additive(attn_mask, query.dtype)
    if kind == "flash":
        size = query.size(-1)
        scale = 1 / math.sqrt(size) if scale is None else scale
        parts = [_padded(tensor, 8) for tensor in (query, key, value)]
        out = _aten._scaled_dot_product_flash_attention(*parts, dropout_p, is_causal, False, scale=scale)[0]
        return out if out.size(-1) == size else out[..., :size]
    if kind == "efficient":
        if mask is not None:
            mask = _aligned(mask).expand(query.size(0), query.size(1), query.size(2), key.size(2))
        return _aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, keeps, dropout_p, is_causal, scale=scale
        )[0]
    return _aten._scaled_dot_product_attention_math(
        query, key, value, mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def _additive(mask: Any, dtype: torch.dtype) -> Any:
    if mask is None or mask.dtype != torch.bool:
        return mask
    minus = torch.scalar_tensor(float("-inf"), dtype=dtype, device=mask.device)
    return torch.where(mask, 0.0, minus)


def _padded(tensor: Any, unit: int) -> Any:
    over = tensor.size(-1) % unit
    return tensor if over == 0 else torch.nn.functional.pad(tensor, (0, unit - over))


def _aligned(mask: Any) -> Any:
    """A mask whose lines begin at multiples of 8 numbers."""
    if all(stride % 8 == 0 for stride in mask.stride()[:-1]) and mask.stride(-1) == 1:
        return mask
    size = mask.size(-1)
    return torch.nn.functional.pad(mask, (0, 8 - size % 8))[..., :size]


def _chosen(
    card: Card, query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, grouped: bool
) -> str:
    """The first kernel in PyTorch's order that takes these tensors."""
    shapes = query.dim() == key.dim() == value.dim() == 4
    heads_differ = not (query.size(1) == key.size(1) == value.size(1)) if shapes else False
    some = shapes and all(tensor.size(2) for tensor in (query, key, value))
    dense = all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    needs = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    mask_grad = mask is not None and mask.requires_grad
    is_half = query.dtype in _HALVES
    size, wide = query.size(-1), value.size(-1)
    backends = torch.backends.cuda
    fused = shapes and some and query.size(0) == key.size(0) == value.size(0)
    may_use: dict[str, Callable[[], bool]] = {
        "cudnn": lambda: (
            backends.cudnn_sdp_enabled()
            and fused
            and card.capability >= (8, 0)
            and is_half
            and not mask_grad
            and size <= 128
            and wide <= 128
            and size % 8 == wide % 8 == 0
            and key.size(2) != 1
            and not (dropout and query.size(2) == 1)
            and dropout * 16 == math.floor(dropout * 16)
            and (not heads_differ or grouped)
            and dense
            and not torch.are_deterministic_algorithms_enabled()
        ),
        "flash": lambda: (
            backends.flash_sdp_enabled()
            and fused
            and mask is None
            and size == key.size(-1) == wide <= 256
            and card.capability >= (8, 0)
            and is_half
            and not (needs and _refuses_wide_heads(card) and not (size <= 192 or (not dropout and size > 224)))
            and not (causal and query.size(2) != key.size(2))
            and (not heads_differ or grouped)
            and dense
        ),
        "efficient": lambda: (
            backends.mem_efficient_sdp_enabled()
            and fused
            and (not heads_differ or (grouped and _EFFICIENT_GROUPS))
            and size == key.size(-1)
            and size % _alignment(card, is_half) == wide % _alignment(card, is_half) == 0
            and dense
            and (query.dtype == torch.float32 or is_half)
            and not (query.dtype == torch.bfloat16 and card.capability < (8, 0))
            and not (needs and torch.are_deterministic_algorithms_enabled() and mask_grad)
        ),
    }
    first = card.capability[0] in (9, 10) and os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") != "1"
    order = ("cudnn", "flash", "efficient") if first else ("flash", "efficient", "math", "cudnn")
    return next((kind for kind in order if kind == "math" or may_use[kind]()), "math")


def _refuses_wide_heads(card: Card) -> bool:
    return (8, 6) <= card.capability <= (8, 9) or card.capability >= (12, 0)


def _alignment(card: Card, is_half: bool) -> int:
    """Numbers to a multiple of which the efficient kernel needs its heads' sizes."""
    major = card.capability[0]
    least = 4 if major >= 8 else 1
    return max(least, 128 // (16 if is_half else 32)) if major >= 8 or (major == 7 and is_half) else least
